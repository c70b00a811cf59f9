package quiesce

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Command is the argument with which a program is to call Watch.
const Command = "thaw-watchdog"

// The two talk in single bytes: the watchdog's first is answerQuiet, when it is ready; then
// it answers every request with one. The end of the requests means thaw and leave.
const (
	requestArm   = 'a' // the limit begins
	requestCheck = 'c'
	requestEnd   = 'e' // all is thawed, leave

	answerQuiet = 'q' // nothing was thawed
	answerFired = 'f' // the limit has passed
)

const (
	firstFile = 3 // of those that a child gets: the file system's root, then the freezers

	// answerPatience is how long a watchdog may take to start, and to answer. On a machine
	// that is that busy a snapshot is not the thing to take.
	answerPatience = 10 * time.Second

	// thawAgain is the time after which the watchdog thaws once more: somebody who was
	// delayed may have frozen only then.
	thawAgain = 20 * time.Millisecond
)

// watchdog is the other process.
type watchdog struct {
	cmd      *exec.Cmd
	requests *os.File
	answers  *os.File
}

// startWatchdog starts it and waits until it can thaw.
func startWatchdog(target Target, root *os.File, freezers []*os.File, limit time.Duration) (*watchdog, error) {
	argv := target.Watchdog
	if argv == nil {
		argv = []string{"/proc/self/exe", Command}
	}
	argv = append(argv[:len(argv):len(argv)], "-limit", limit.String())
	if mayExpedite() {
		argv = append(argv, "-unexpedite")
	}
	for _, f := range target.Tasks {
		argv = append(argv, f.Thaw)
	}
	stdin, requests, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, stdout, err := os.Pipe()
	if err != nil {
		_, _ = stdin.Close(), requests.Close()
		return nil, err
	}
	w := &watchdog{requests: requests, answers: answers, cmd: exec.Command(argv[0], argv[1:]...)}
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = stdin, stdout, os.Stderr
	w.cmd.ExtraFiles = append([]*os.File{root}, freezers...)
	w.cmd.Env = []string{}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C in a terminal is not for it
	err = w.cmd.Start()
	_, _ = stdin.Close(), stdout.Close() // so that its end is seen
	if err != nil {
		w.close()
		return nil, err
	}
	if _, err := w.answer(); err != nil {
		_ = w.cmd.Process.Kill() // nothing is frozen yet
		_ = w.cmd.Wait()
		w.close()
		return nil, err
	}
	return w, nil
}

// answer reads the next byte.
func (w *watchdog) answer() (byte, error) {
	b := make([]byte, 1)
	if err := w.answers.SetReadDeadline(time.Now().Add(answerPatience)); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(w.answers, b); err != nil {
		return 0, fmt.Errorf("hear from the watchdog: %w", err)
	}
	return b[0], nil
}

// ask sends a request and reports whether the watchdog has fired.
func (w *watchdog) ask(request byte) (fired bool, err error) {
	if _, err := w.requests.Write([]byte{request}); err != nil {
		return false, fmt.Errorf("tell the watchdog: %w", err)
	}
	b, err := w.answer()
	return b == answerFired, err
}

// arm begins the limit.
func (w *watchdog) arm() error {
	_, err := w.ask(requestArm)
	return err
}

// check makes sure that the watchdog is there and has not fired.
func (w *watchdog) check() error {
	fired, err := w.ask(requestCheck)
	if err == nil && fired {
		err = fault.New(fault.Unavailable, "the limit has passed before all was frozen")
	}
	return err
}

// end ends it; all must be thawed.
func (w *watchdog) end() (fired bool, err error) {
	fired, err = w.ask(requestEnd)
	w.close() // in any case: that ends it too
	if waitErr := w.cmd.Wait(); err == nil {
		err = waitErr
	}
	return fired, err
}

func (w *watchdog) close() { _, _ = w.requests.Close(), w.answers.Close() }

// Watch is the body of `reflejo thaw-watchdog`; args are what comes after that word. It
// returns the exit code.
func Watch(args []string) int {
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	limit := flags.Duration("limit", 0, "time after which to thaw")
	off := flags.Bool("unexpedite", false, "switch "+expediteFile+" off after a thaw")
	if flags.Parse(args) != nil || *limit <= 0 {
		return 2
	}
	// Whatever ends the agent is not for the one who cleans up after it.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	k := &keeper{root: os.NewFile(firstFile, "root"), thaws: flags.Args(), unexpedite: *off}
	for i, value := range k.thaws {
		k.freezers = append(k.freezers, os.NewFile(uintptr(firstFile+1+i), "freezer for "+value))
	}
	requests := make(chan byte)
	go func() {
		defer close(requests)
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(os.Stdin, b); err != nil {
				return
			}
			requests <- b[0]
		}
	}()
	return k.keep(requests, os.Stdout, *limit)
}

// keeper is the watchdog's side.
type keeper struct {
	root       *os.File
	freezers   []*os.File
	thaws      []string // what continues each
	unexpedite bool
}

func (k *keeper) keep(requests <-chan byte, answers io.Writer, limit time.Duration) int {
	var expired <-chan time.Time
	state := []byte{answerQuiet}
	_, _ = answers.Write(state) // nobody hears it: then the requests end
	for {
		select {
		case r, open := <-requests:
			if !open {
				k.thaw()
				return 1
			}
			if r == requestArm {
				expired = time.After(limit)
			}
			_, _ = answers.Write(state)
			if r == requestEnd {
				return 0
			}
		case <-expired:
			state[0] = answerFired
			k.thaw()
			expired = time.After(thawAgain)
		}
	}
}

// thaw thaws all. What is not frozen stays so, and nobody could act on an error.
func (k *keeper) thaw() {
	_ = thawFile(k.root)
	for i, f := range k.freezers {
		_ = write(f, k.thaws[i])
	}
	if k.unexpedite {
		unexpedite()
	}
}
