package guestinit

import (
	"reflect"
	"testing"
)

func TestArgsRoundTrip(t *testing.T) {
	for _, o := range []Options{
		{},
		{FirstBoot: "/var/lib/reflejo/first-boot"},
		{Exec: true, FirstBoot: "/x", Argv: []string{"/sbin/init"}},
		{Argv: []string{"nginx", "-g", "--", "-exec"}},
	} {
		got, err := ParseArgs(o.Args()[1:])
		if err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%+v came back as %+v, %v", o, got, err)
		}
	}
}

func TestParseArgsRefuses(t *testing.T) {
	for _, args := range [][]string{{"-exec"}, {"-exec", "--"}, {"sh"}, {"-first-boot"}} {
		if o, err := ParseArgs(args); err == nil {
			t.Errorf("%q gave %+v", args, o)
		}
	}
}
