package service

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// objectOf reads from a request what it is about, for the audit log: the id and name
// fields of it, or of the part that describes the object.
func objectOf(m proto.Message) Entry {
	r := m.ProtoReflect()
	for _, part := range []protoreflect.Name{"spec", "header", "start"} {
		f := r.Descriptor().Fields().ByName(part)
		if f != nil && r.Has(f) {
			r = r.Get(f).Message()
			break
		}
	}
	e := Entry{ID: clip(stringField(r, "id")), Name: clip(stringField(r, "name"))}
	switch m := m.(type) {
	case *reflejov1.SetPowerRequest:
		e.Detail = string(actions[m.GetAction()])
	case *reflejov1.ImportImageRequest:
		e.Detail = clip(m.GetSource())
	case *reflejov1.CreateSnapshotRequest:
		e.Detail = clip("of server " + m.GetServer())
	case *reflejov1.RestoreServerRequest:
		e.ID, e.Detail = clip(m.GetServer()), clip("snapshot "+m.GetSnapshot()+", safety snapshot "+m.GetId())
	case *reflejov1.CreateBackupRequest:
		e.Detail = clip("snapshot " + m.GetSnapshot() + " to " + m.GetTarget())
	case *reflejov1.ImportBackupRequest:
		e.Detail = clip("backup " + m.GetBackup() + " of " + m.GetTarget())
	case *reflejov1.PrepareMigrationRequest: // a ticket is a secret, and is in no request's id or name
		e.ID, e.Name, e.Detail = clip(m.GetServer().GetSpec().GetId()), clip(m.GetServer().GetSpec().GetName()), clip("from host "+m.GetSource())
	case *reflejov1.MigrateServerRequest:
		e.Detail = clip("to host " + m.GetTarget())
	case *reflejov1.RecoverServerRequest:
		e.Detail = clip("of lost host " + m.GetLostHost())
	case *reflejov1.ExecRequest:
		if argv := m.GetStart().GetArgv(); len(argv) > 0 {
			e.Detail = clip(argv[0]) // never the arguments: they may hold secrets
		}
	}
	return e
}

func stringField(r protoreflect.Message, name protoreflect.Name) string {
	f := r.Descriptor().Fields().ByName(name)
	if f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
		return ""
	}
	return r.Get(f).String()
}

// clip bounds what a request can make the audit log say.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most]
	}
	return s
}
