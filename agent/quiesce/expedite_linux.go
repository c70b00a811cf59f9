package quiesce

import (
	"os"
	"strings"
	"sync"
)

// Freezing a file system waits for RCU grace periods in which nothing else is to be done:
// 30 to 60 ms in which writers are held up, and 1 ms if the kernel is asked to be quick,
// which costs every processor an interrupt. There is one switch for the whole kernel. It is
// on only for the call; a host where it cannot be set, or is on anyway, is left alone.
const expediteFile = "/sys/kernel/rcu_expedited"

var expedite struct {
	sync.Mutex
	users int
	ours  bool // we have switched it on
}

// expedited does something while the kernel's grace periods are short.
func expedited(do func() error) error {
	expedite.Lock()
	if expedite.users++; expedite.users == 1 {
		expedite.ours = mayExpedite() && os.WriteFile(expediteFile, []byte("1"), 0) == nil
	}
	expedite.Unlock()
	defer func() {
		expedite.Lock()
		defer expedite.Unlock()
		if expedite.users--; expedite.users == 0 && expedite.ours {
			unexpedite()
		}
	}()
	return do()
}

// mayExpedite reports whether the switch is off, so that it is ours to switch on and off.
func mayExpedite() bool {
	b, err := os.ReadFile(expediteFile)
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// unexpedite switches off. That it fails where switching on did not is beyond our power, and
// does no harm.
func unexpedite() { _ = os.WriteFile(expediteFile, []byte("0"), 0) }
