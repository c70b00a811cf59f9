package service

import (
	"slices"

	rpc "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1/reflejov1connect"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// MetricsPath is where Prometheus reads.
const MetricsPath = "/metrics"

// access is what one path is and who may call it.
type access struct {
	roles    []pki.Role
	mutation bool // goes to the audit log
}

var (
	everyone  = []pki.Role{pki.RoleOperator, pki.RoleMonitor, pki.RoleAgent}
	observers = []pki.Role{pki.RoleOperator, pki.RoleMonitor}
	operators = []pki.Role{pki.RoleOperator}
)

// authz says which roles may call a path. A path that is not here does not exist.
//
// What a console printed and the programs that run in a server are the server's secrets,
// so a monitor sees neither.
var authz = map[string]access{
	rpc.HostServiceGetHostProcedure: {roles: everyone},

	rpc.ServerServiceGetServerProcedure:      {roles: observers},
	rpc.ServerServiceListServersProcedure:    {roles: observers},
	rpc.ServerServiceWatchServerProcedure:    {roles: observers},
	rpc.ServerServiceReadConsoleLogProcedure: {roles: operators},
	rpc.ServerServiceCreateServerProcedure:   {roles: operators, mutation: true},
	rpc.ServerServiceUpdateServerProcedure:   {roles: operators, mutation: true},
	rpc.ServerServiceSetPowerProcedure:       {roles: operators, mutation: true},
	rpc.ServerServiceDeleteServerProcedure:   {roles: operators, mutation: true},
	rpc.ServerServiceExecProcedure:           {roles: operators, mutation: true},
	rpc.ServerServiceConsoleProcedure:        {roles: operators, mutation: true},

	rpc.ServerServicePrepareMigrationProcedure: {roles: operators, mutation: true},
	rpc.ServerServiceMigrateServerProcedure:    {roles: operators, mutation: true},
	rpc.ServerServiceRecoverServerProcedure:    {roles: operators, mutation: true},

	rpc.SnapshotServiceGetSnapshotProcedure:    {roles: observers},
	rpc.SnapshotServiceListSnapshotsProcedure:  {roles: observers},
	rpc.SnapshotServiceWatchSnapshotProcedure:  {roles: observers},
	rpc.SnapshotServiceCreateSnapshotProcedure: {roles: operators, mutation: true},
	rpc.SnapshotServiceUpdateSnapshotProcedure: {roles: operators, mutation: true},
	rpc.SnapshotServiceDeleteSnapshotProcedure: {roles: operators, mutation: true},
	rpc.SnapshotServiceRestoreServerProcedure:  {roles: operators, mutation: true},

	rpc.BackupServiceGetBackupProcedure:    {roles: observers},
	rpc.BackupServiceListBackupsProcedure:  {roles: observers},
	rpc.BackupServiceWatchBackupProcedure:  {roles: observers},
	rpc.BackupServiceListTargetProcedure:   {roles: observers},
	rpc.BackupServiceVerifyBackupProcedure: {roles: operators}, // changes nothing, but reads everything
	rpc.BackupServiceCreateBackupProcedure: {roles: operators, mutation: true},
	rpc.BackupServiceDeleteBackupProcedure: {roles: operators, mutation: true},
	rpc.BackupServiceImportBackupProcedure: {roles: operators, mutation: true},

	rpc.ImageServiceGetImageProcedure:    {roles: observers},
	rpc.ImageServiceListImagesProcedure:  {roles: observers},
	rpc.ImageServiceImportImageProcedure: {roles: operators, mutation: true},
	rpc.ImageServiceUploadImageProcedure: {roles: operators, mutation: true},
	rpc.ImageServiceUpdateImageProcedure: {roles: operators, mutation: true},
	rpc.ImageServiceDeleteImageProcedure: {roles: operators, mutation: true},

	rpc.NetworkServiceGetNetworkProcedure:    {roles: observers},
	rpc.NetworkServiceListNetworksProcedure:  {roles: observers},
	rpc.NetworkServicePutNetworkProcedure:    {roles: operators, mutation: true},
	rpc.NetworkServiceDeleteNetworkProcedure: {roles: operators, mutation: true},

	MetricsPath: {roles: observers},
}

func (a access) allows(role pki.Role) bool { return slices.Contains(a.roles, role) }
