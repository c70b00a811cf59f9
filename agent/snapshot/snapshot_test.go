package snapshot_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func goodRecord() snapshot.Record {
	return snapshot.Record{ID: uuid.NewString(), Server: uuid.NewString(), ServerName: "web", Host: "alpha", Name: "before-upgrade",
		Consistency: snapshot.ConsistencyCrash, Origin: snapshot.OriginManual, ServerState: vserver.StateStopped, Size: 1 << 30,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Labels: map[string]string{"a": "b"}, Checksum: "sha256:" + strings.Repeat("a", 64)}
}

func TestRecordBounds(t *testing.T) {
	if err := goodRecord().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, changes := range map[string][]func(*snapshot.Record){
		"id":           {func(r *snapshot.Record) { r.ID = "" }, func(r *snapshot.Record) { r.ID = strings.ToUpper(r.ID[:35]) + "A" }},
		"server_id":    {func(r *snapshot.Record) { r.Server = "web" }},
		"server_name":  {func(r *snapshot.Record) { r.ServerName = "../web" }},
		"host":         {func(r *snapshot.Record) { r.Host = strings.Repeat("h", 254) }, func(r *snapshot.Record) { r.Host = "\xff" }},
		"name":         {func(r *snapshot.Record) { r.Name = "" }, func(r *snapshot.Record) { r.Name = "A b" }},
		"size":         {func(r *snapshot.Record) { r.Size = 0 }, func(r *snapshot.Record) { r.Size = 4097 }, func(r *snapshot.Record) { r.Size = 65 << 40 }},
		"pause":        {func(r *snapshot.Record) { r.Pause = -1 }},
		"created_at":   {func(r *snapshot.Record) { r.Created = time.Time{} }},
		"checksum":     {func(r *snapshot.Record) { r.Checksum = "md5:1" }},
		"server_state": {func(r *snapshot.Record) { r.ServerState = vserver.StateFailed }},
		"image":        {func(r *snapshot.Record) { r.Image.ID = strings.Repeat("x", 257) }},
		"labels": {func(r *snapshot.Record) { r.Labels = map[string]string{"a": strings.Repeat("x", 256)} }, func(r *snapshot.Record) {
			r.Labels = map[string]string{}
			for range 65 {
				r.Labels[uuid.NewString()] = ""
			}
		}},
		"description": {func(r *snapshot.Record) { r.Description = "\xff" }},
		"consistency": {func(r *snapshot.Record) { r.Consistency = "none" }},
		"origin":      {func(r *snapshot.Record) { r.Origin = "none" }},
	} {
		for _, change := range changes {
			r := goodRecord()
			change(&r)
			wantKind(t, r.Validate(), fault.Invalid, field)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	good, err := json.Marshal(goodRecord())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"ID":1}`))
	f.Add([]byte(`{"Spec":{"Network":{"eth0":null}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := snapshot.DecodeRecord(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v: want it to be invalid", err)
			}
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := snapshot.DecodeRecord(again)
		if err != nil || b.ID != r.ID || !maps.Equal(b.Labels, r.Labels) || !b.Created.Equal(r.Created) {
			t.Fatalf("%+v, read again %+v, %v", r, b, err)
		}
	})
}

func TestDecodeRecordIsBounded(t *testing.T) {
	_, err := snapshot.DecodeRecord([]byte(strings.Repeat(" ", 1<<20+1)))
	wantKind(t, err, fault.Invalid, "")
}
