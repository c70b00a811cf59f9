package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// lxd is a daemon of our own, in its own mount, network and process namespaces, with a
// btrfs pool on a loop file. It is spoken to through its API.
type lxd struct {
	dir    string
	cmd    *exec.Cmd
	log    *os.File
	http   *http.Client
	prefix string   // of its servers' names: their control groups are in the machine's hierarchy
	groups []string // control groups of LXC that were there before
}

// lxdPatience bounds how long it may take to clear away.
const lxdPatience = 2 * time.Minute

func lxdInstalled() bool {
	_, err := exec.LookPath("lxd")
	return err == nil
}

// newLXD starts the daemon and gives it the images.
func newLXD(ctx context.Context, dir string, images images) (_ *lxd, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove what a killed run left: %w", err)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	l := &lxd{dir: dir, prefix: fmt.Sprintf("rb%d-", os.Getpid()), groups: lxcGroups()}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.stop())
		}
	}()
	if err := l.start(ctx); err != nil {
		return nil, err
	}
	pool := map[string]any{"name": "bench", "driver": "btrfs", "config": map[string]string{"size": "30GiB"}}
	if err := l.call(ctx, http.MethodPost, "/1.0/storage-pools", pool, nil); err != nil {
		return nil, err
	}
	profile := map[string]any{"devices": map[string]any{"root": map[string]string{"type": "disk", "path": "/", "pool": "bench"}}}
	if err := l.call(ctx, http.MethodPatch, "/1.0/profiles/default", profile, nil); err != nil {
		return nil, err
	}
	if err := l.importImage(ctx, "tiny", func(w io.Writer) error { return lxdImage(w, bytes.NewReader(images.tiny)) }); err != nil {
		return nil, err
	}
	if images.debian != "" {
		err := l.importImage(ctx, "debian", func(w io.Writer) error { return lxdImageFile(w, images.debian) })
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

// start runs the daemon until it answers.
func (l *lxd) start(ctx context.Context) (err error) {
	if l.log, err = os.Create(filepath.Join(l.dir, "log")); err != nil {
		return err
	}
	// A shell is its first process: the daemon would not wait for what its containers leave.
	l.cmd = exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation=private",
		"sh", "-c", `ip link set lo up; lxd --group root & trap : TERM; wait; wait`)
	l.cmd.Env = append(os.Environ(), "LXD_DIR="+l.dir)
	l.cmd.Stdout, l.cmd.Stderr = l.log, l.log
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: 0}
	if err := l.cmd.Start(); err != nil {
		return fmt.Errorf("start LXD: %w", err)
	}
	l.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(l.dir, "unix.socket"))
	}}}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err = l.call(ctx, http.MethodGet, "/1.0", nil, nil); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(l.log.Name())
			return fmt.Errorf("start LXD: no answer: %w\n%s", err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the daemon and its containers and removes what is left of them.
func (l *lxd) stop() error {
	if l.cmd != nil && l.cmd.Process != nil {
		ctx, cancel := context.WithTimeout(context.Background(), lxdPatience)
		defer cancel()
		var names []string
		_ = l.call(ctx, http.MethodGet, "/1.0/instances", nil, &names)
		for _, name := range names {
			_ = l.remove(ctx, filepath.Base(name))
		}
		// The pool goes orderly, so that nothing is left mounted; then everything is killed.
		_ = l.call(ctx, http.MethodPut, "/internal/shutdown", nil, nil)
		_ = l.cmd.Process.Kill() // --kill-child takes the namespace's first process along
		_ = l.cmd.Wait()
	}
	l.log.Close()
	for _, g := range lxcGroups() {
		// What is in use, another LXD's say, can't be removed.
		if ours := strings.Contains(g, "."+l.prefix) || strings.HasSuffix(g, "lxc.pivot"); ours && !slices.Contains(l.groups, g) {
			_ = os.Remove(g)
		}
	}
	var err error
	for range 100 { // the namespaces' end unmounts
		if err = os.RemoveAll(l.dir); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("remove LXD's directory: %w", err)
}

// lxcGroups lists the control groups that LXC makes at the top of each hierarchy.
func lxcGroups() []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/lxc.*")
	v2, _ := filepath.Glob("/sys/fs/cgroup/lxc.*")
	return append(v1, v2...)
}

// reply is the envelope of LXD's answers.
type reply struct {
	Type      string
	Error     string
	Operation string
	Metadata  json.RawMessage
}

// call makes a request, waits for the operation that it may start, and decodes what that
// or the answer holds into result.
func (l *lxd) call(ctx context.Context, method, path string, body, result any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return l.send(ctx, method, path, bytes.NewReader(text), result)
}

func (l *lxd) send(ctx context.Context, method, path string, body io.Reader, result any) error {
	answer, err := l.request(ctx, method, path, body)
	if err == nil && answer.Type == "async" {
		answer, err = l.request(ctx, http.MethodGet, answer.Operation+"/wait", nil)
		var op struct {
			Err      string
			Metadata json.RawMessage
		}
		if err == nil {
			err = json.Unmarshal(answer.Metadata, &op)
		}
		if err == nil && op.Err != "" {
			err = errors.New(op.Err)
		}
		answer.Metadata = op.Metadata
	}
	if err != nil {
		return fmt.Errorf("LXD: %s %s: %w", method, path, err)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Metadata, result)
}

func (l *lxd) request(ctx context.Context, method, path string, body io.Reader) (answer reply, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://lxd"+path, body)
	if err != nil {
		return answer, err
	}
	response, err := l.http.Do(req)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, 8<<20)).Decode(&answer); err != nil {
		return answer, err
	}
	if answer.Error != "" {
		return answer, errors.New(answer.Error)
	}
	return answer, nil
}

// importImage streams an image in under an alias.
func (l *lxd) importImage(ctx context.Context, alias string, write func(io.Writer) error) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }()
	var image struct{ Fingerprint string }
	if err := l.send(ctx, http.MethodPost, "/1.0/images", r, &image); err != nil {
		return err
	}
	return l.call(ctx, http.MethodPost, "/1.0/images/aliases", map[string]string{"name": alias, "target": image.Fingerprint}, nil)
}

// create makes a server and starts it.
func (l *lxd) create(ctx context.Context, name, image string, config map[string]string) error {
	source := map[string]string{"type": "image", "alias": image}
	if err := l.call(ctx, http.MethodPost, "/1.0/instances", map[string]any{"name": l.prefix + name, "source": source, "config": config}, nil); err != nil {
		return err
	}
	return l.call(ctx, http.MethodPut, "/1.0/instances/"+l.prefix+name+"/state", map[string]any{"action": "start", "timeout": 60}, nil)
}

// exec runs a command in a server to its end.
func (l *lxd) exec(ctx context.Context, name string, argv ...string) (out string, err error) {
	var result struct {
		Return int
		Output map[string]string
	}
	body := map[string]any{"command": argv, "record-output": true, "wait-for-websocket": false, "interactive": false}
	if err := l.call(ctx, http.MethodPost, "/1.0/instances/"+l.prefix+name+"/exec", body, &result); err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lxd"+result.Output["1"], nil)
	if err != nil {
		return "", err
	}
	response, err := l.http.Do(req)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, mebibyte))
	return strings.TrimSpace(string(text)), err
}

// remove kills and deletes a server; name has the prefix. Under load LXD refuses while an
// earlier operation has not ended, so it is asked again until ctx ends.
func (l *lxd) remove(ctx context.Context, name string) error {
	path := "/1.0/instances/" + url.PathEscape(name)
	for {
		_ = l.call(ctx, http.MethodPut, path+"/state", map[string]any{"action": "stop", "timeout": 30, "force": true}, nil) // it may not run
		err := l.call(ctx, http.MethodDelete, path, nil, nil)
		if err == nil {
			return nil
		}
		var there map[string]any
		if getErr := l.call(ctx, http.MethodGet, path, nil, &there); getErr != nil && ctx.Err() == nil {
			return nil // it is gone
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// removeAll is remove for what a benchmark leaves, also when its time is over.
func (l *lxd) removeAll(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lxdPatience)
	defer cancel()
	return together(len(names), 4, func(i int) error { return l.remove(ctx, l.prefix+names[i]) })
}

// snapshot takes a snapshot of a server.
func (l *lxd) snapshot(ctx context.Context, name, snapshot string) error {
	return l.call(ctx, http.MethodPost, "/1.0/instances/"+l.prefix+name+"/snapshots", map[string]any{"name": snapshot, "stateful": false}, nil)
}

// root is where a server's root is, in the daemon's mount namespace.
func (l *lxd) root(name string) string {
	return filepath.Join("/proc", fmt.Sprint(l.cmd.Process.Pid), "root", l.dir, "storage-pools", "bench", "containers", l.prefix+name, "rootfs")
}

// firstCommand is run.firstCommand for LXD.
func (l *lxd) firstCommand(ctx context.Context, name string) (took time.Duration, err error) {
	began := time.Now()
	if err := l.create(ctx, name, "tiny", nil); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.removeAll(ctx, name)) }()
	_, err = l.exec(ctx, name, "/bin/busybox", "echo", "up")
	return time.Since(began), err
}

// createMany is run.createMany for LXD.
func (l *lxd) createMany(ctx context.Context, round, n int) (all time.Duration, failed int, err error) {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("v3-%d-%d", round, i)
	}
	all, _, failed = timeMany(n, func(i int) error { return l.create(ctx, names[i], "tiny", nil) })
	return all, failed, l.removeAll(ctx, names...)
}

// version is LXD's.
func (l *lxd) version(ctx context.Context) (string, error) {
	var info struct {
		Environment struct {
			Version string `json:"server_version"`
		}
	}
	err := l.call(ctx, http.MethodGet, "/1.0", nil, &info)
	return info.Environment.Version, err
}
