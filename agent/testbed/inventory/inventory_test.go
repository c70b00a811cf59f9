package inventory

import "testing"

func TestDiff(t *testing.T) {
	tests := map[string]struct {
		before, after Inventory
		want          string
	}{
		"nothing":    {nil, nil, ""},
		"same":       {Inventory{"link a", "link b"}, Inventory{"link b", "link a"}, ""},
		"lost":       {Inventory{"link a", "link b"}, Inventory{"link b"}, "- link a\n"},
		"left":       {Inventory{"link a"}, Inventory{"link a", "mount /x"}, "+ mount /x\n"},
		"one of two": {Inventory{"process sh", "process sh"}, Inventory{"process sh"}, "- process sh\n"},
		"both ways":  {Inventory{"link a"}, Inventory{"link b"}, "- link a\n+ link b\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.before.Diff(tt.after); got != tt.want {
				t.Errorf("Diff = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWithout(t *testing.T) {
	i := Inventory{"link a", "file /state.db", "link b"}
	if got := i.Without("state.db", "link b").String(); got != "link a\n" {
		t.Errorf("Without = %q", got)
	}
	if len(i) != 3 {
		t.Error("Without changed its receiver")
	}
}
