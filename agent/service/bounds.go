package service

import (
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Bounds of every request, whatever it means. They keep a request's cost small before
// anything looks at its meaning; the domain's own rules are narrower.
const (
	maxString   = 4 << 10 // bytes of one string
	maxElements = 256     // of one list or map
	maxDuration = 24 * time.Hour
)

// widerStrings and widerLists are the fields that may have more.
var (
	widerStrings = map[protoreflect.FullName]int{
		"reflejo.v1.ServerSpec.first_boot": 512 << 10,
		"reflejo.v1.ExecStart.argv":        128 << 10, // what Linux gives one argument
		"reflejo.v1.ExecStart.env":         128 << 10,
	}
	widerLists = map[protoreflect.FullName]int{
		"reflejo.v1.ExecStart.argv": 4096,
		"reflejo.v1.ExecStart.env":  1024,
	}
	maxBytes = map[protoreflect.FullName]int{
		"reflejo.v1.UploadImageRequest.data": api.MaxChunk,
		"reflejo.v1.ExecRequest.stdin":       api.MaxExecChunk,
		"reflejo.v1.ConsoleRequest.data":     api.MaxExecChunk,
	}
)

// checkBounds refuses a request with an oversized, negative-sized or unprintable part and
// names the field.
func checkBounds(m proto.Message) error { return boundsOf(m.ProtoReflect(), "") }

func boundsOf(m protoreflect.Message, path string) error {
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		if err := d.CheckValid(); err != nil || d.AsDuration() < 0 || d.AsDuration() > maxDuration {
			return fault.Field(path, "%s: want a duration of 0s … %s", path, maxDuration)
		}
		return nil
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = boundsOfField(f, v, join(path, string(f.Name())))
		return err == nil
	})
	return err
}

func boundsOfField(f protoreflect.FieldDescriptor, v protoreflect.Value, path string) error {
	limit := or(widerLists[f.FullName()], maxElements)
	switch {
	case f.IsMap():
		if n := v.Map().Len(); n > limit {
			return fault.Field(path, "%s: %d entries, at most %d", path, n, limit)
		}
		var err error
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if err = boundsOfValue(f.MapKey(), k.Value(), path); err == nil {
				err = boundsOfValue(f.MapValue(), v, join(path, k.String()))
			}
			return err == nil
		})
		return err
	case f.IsList():
		if n := v.List().Len(); n > limit {
			return fault.Field(path, "%s: %d elements, at most %d", path, n, limit)
		}
		for i := range v.List().Len() {
			if err := boundsOfValue(f, v.List().Get(i), fmt.Sprintf("%s.%d", path, i)); err != nil {
				return err
			}
		}
		return nil
	}
	return boundsOfValue(f, v, path)
}

func boundsOfValue(f protoreflect.FieldDescriptor, v protoreflect.Value, path string) error {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return boundsOf(v.Message(), path)
	case protoreflect.StringKind:
		if limit := or(widerStrings[f.FullName()], maxString); len(v.String()) > limit {
			return fault.Field(path, "%s: %d bytes, at most %d", path, len(v.String()), limit)
		}
		if strings.ContainsRune(v.String(), 0) {
			return fault.Field(path, "%s: has a zero byte in it", path)
		}
	case protoreflect.BytesKind:
		if limit := or(maxBytes[f.FullName()], maxString); len(v.Bytes()) > limit {
			return fault.Field(path, "%s: %d bytes, at most %d", path, len(v.Bytes()), limit)
		}
	case protoreflect.Int64Kind:
		if v.Int() < 0 {
			return fault.Field(path, "%s: %d is negative", path, v.Int())
		}
	case protoreflect.Uint32Kind:
		if v.Uint() > math.MaxInt32 { // an int on every machine
			return fault.Field(path, "%s: %d is too large", path, v.Uint())
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func or(v, otherwise int) int {
	if v != 0 {
		return v
	}
	return otherwise
}
