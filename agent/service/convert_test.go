package service

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// filler fills every field of a message with a value of its own.
type filler struct{ n int64 }

func (f *filler) fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i)
		switch {
		case d.IsMap():
			v := m.NewField(d).Map()
			v.Set(protoreflect.ValueOfString(fmt.Sprint("key", f.next())).MapKey(), f.value(d.MapValue(), v.NewValue))
			m.Set(d, protoreflect.ValueOfMap(v))
		case d.IsList():
			v := m.NewField(d).List()
			for range 2 {
				v.Append(f.value(d, v.NewElement))
			}
			m.Set(d, protoreflect.ValueOfList(v))
		default:
			m.Set(d, f.value(d, func() protoreflect.Value { return m.NewField(d) }))
		}
	}
}

func (f *filler) next() int64 { f.n++; return f.n }

func (f *filler) value(d protoreflect.FieldDescriptor, make func() protoreflect.Value) protoreflect.Value {
	switch d.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint("text", f.next()))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(f.next())
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(f.next()))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(f.next()))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(f.next()))
	case protoreflect.MessageKind:
		v := make()
		f.fill(v.Message())
		return v
	}
	panic("a kind of field that no test fills yet: " + d.Kind().String())
}

// A field that convert.go forgets comes back empty.
func TestServerSpecRoundTrip(t *testing.T) {
	t.Parallel()
	want := &reflejov1.ServerSpec{}
	(&filler{}).fill(want.ProtoReflect())
	spec := specFromProto(want)
	if spec.FirstBoot.UserData != want.GetFirstBoot() {
		t.Error("first-boot data is lost on the way in")
	}
	want.FirstBoot = "" // a secret: it never comes back
	if diff := cmp.Diff(want, specToProto(spec), protocmp.Transform()); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
}

func TestNetworkSpecRoundTrip(t *testing.T) {
	t.Parallel()
	want := &reflejov1.NetworkSpec{}
	(&filler{}).fill(want.ProtoReflect())
	want.Cidr = "10.77.0.0/16"
	for i, m := range want.Members {
		m.Address = fmt.Sprintf("198.18.0.%d", i+1)
	}
	d, err := networkFromProto(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, networkToProto(network.View{Definition: d}).GetSpec(), protocmp.Transform()); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	for field, bad := range map[string]*reflejov1.NetworkSpec{
		"cidr":  {Cidr: "10.77.0.0"},
		"hosts": {Cidr: "10.77.0.0/16", Members: []*reflejov1.NetworkMember{{Host: "a", Address: "here"}}},
	} {
		if _, err := networkFromProto(bad); fault.FieldOf(err) != field {
			t.Errorf("got %v, want an error that blames %s", err, field)
		}
	}
}

// Every field of an answer is made of something: a full domain value leaves none empty.
func TestAnswersAreComplete(t *testing.T) {
	t.Parallel()
	var view vserver.View
	fillValue(reflect.ValueOf(&view).Elem(), "")
	var usage vserver.Usage
	fillValue(reflect.ValueOf(&usage).Elem(), "")
	var net network.View
	fillValue(reflect.ValueOf(&net).Elem(), "")
	var info image.Info
	fillValue(reflect.ValueOf(&info).Elem(), "")
	var resources vserver.Resources
	fillValue(reflect.ValueOf(&resources).Elem(), "")
	var copied snapshot.View
	fillValue(reflect.ValueOf(&copied).Elem(), "")
	var saved backup.View
	fillValue(reflect.ValueOf(&saved).Elem(), "")
	for _, c := range []struct {
		message proto.Message
		besides []string // filled in elsewhere, or never
	}{
		{viewToProto(view), []string{"host", "image_name", "usage", "spec.first_boot"}},
		{usageToProto(usage), nil},
		{snapshotToProto(copied), []string{"host", "spec.first_boot"}},
		{backupToProto(saved), []string{"spec.first_boot"}},
		{networkToProto(net), nil},
		{imageToProto(info, 1), nil},
		{resourcesToProto(resources), nil},
	} {
		empty := map[string]bool{}
		emptyFields(c.message.ProtoReflect(), "", empty)
		for _, name := range c.besides {
			delete(empty, name)
		}
		for name := range empty {
			t.Errorf("%s: %s is empty", c.message.ProtoReflect().Descriptor().Name(), name)
		}
	}
}

func emptyFields(m protoreflect.Message, path string, empty map[string]bool) {
	fields := m.Descriptor().Fields()
	if m.Descriptor().FullName().Parent() == "google.protobuf" {
		return
	}
	for i := range fields.Len() {
		d := fields.Get(i)
		name := join(path, string(d.Name()))
		switch {
		case !m.Has(d):
			empty[name] = true
		case d.IsMap():
			m.Get(d).Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				if d.MapValue().Kind() == protoreflect.MessageKind {
					emptyFields(v.Message(), name, empty)
				}
				return true
			})
		case d.Kind() == protoreflect.MessageKind && d.IsList():
			emptyFields(m.Get(d).List().Get(0).Message(), name, empty)
		case d.Kind() == protoreflect.MessageKind:
			emptyFields(m.Get(d).Message(), name, empty)
		}
	}
}

// fillValue sets every part of a domain value to something.
func fillValue(v reflect.Value, name string) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Unix(1_700_000_000, 0)
		return
	case *netip.Addr:
		*x = netip.MustParseAddr("10.0.0.1")
		return
	case *netip.Prefix:
		*x = netip.MustParsePrefix("10.0.0.0/8")
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fillValue(v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Map:
		element := reflect.New(v.Type().Elem()).Elem()
		fillValue(element, name)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), element)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillValue(v.Index(0), name)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(.5)
	default:
		panic("a kind of field that no test fills yet: " + name)
	}
}

func TestActions(t *testing.T) {
	t.Parallel()
	for n := range reflejov1.SetPowerRequest_Action_name {
		a := reflejov1.SetPowerRequest_Action(n)
		_, err := actionFromProto(a)
		if known := a != reflejov1.SetPowerRequest_ACTION_UNSPECIFIED; known != (err == nil) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if _, err := actionFromProto(99); fault.FieldOf(err) != "action" {
		t.Errorf("got %v", err)
	}
}

// What a source shows of a server arrives at its target as far as it says how it is to be there.
func TestViewFromProto(t *testing.T) {
	t.Parallel()
	p := &reflejov1.Server{}
	(&filler{}).fill(p.ProtoReflect())
	for _, nic := range p.Nics {
		nic.Address = "10.77.0.3/24"
	}
	p.CreatedAt = timestamp(time.Unix(1_700_000_000, 0))
	v, err := viewFromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	want := &reflejov1.Server{Spec: p.Spec, State: p.State, CreatedAt: p.CreatedAt, Nics: p.Nics, DiskUsed: p.DiskUsed, Generation: p.Generation}
	want.Spec.FirstBoot = ""
	if diff := cmp.Diff(want, viewToProto(v), protocmp.Transform()); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	p.Nics["eth0"] = &reflejov1.NicStatus{Address: "somewhere"}
	if _, err := viewFromProto(p); fault.FieldOf(err) != "network" {
		t.Errorf("got %v", err)
	}
}
