package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// syncs writes 4 KiB and calls fsync(2) again and again for some seconds, in a file that is
// there already or at the end of a growing one, and prints how often it did in a second.
// The same program runs inside and outside.
const syncs = `use strict; use Time::HiRes qw(time); use Fcntl;
my ($file, $mode, $seconds) = @ARGV; my $block = "x" x 4096; my $blocks = 1024;
sysopen(my $f, $file, O_RDWR|O_CREAT|O_TRUNC) or die "open $file: $!";
if ($mode eq "over") { for (1..$blocks) { syswrite($f, $block) == 4096 or die "write: $!" } }
syscall(%d, fileno($f)) == 0 or die "fsync: $!";
my ($n, $start) = (0, time);
while (time - $start < $seconds) {
  sysseek($f, 4096 * ($n %% $blocks), 0) if $mode eq "over";
  syswrite($f, $block) == 4096 or die "write: $!";
  syscall(%[1]d, fileno($f)) == 0 or die "fsync: $!";
  $n++;
}
printf "%%.3f\n", $n / (time - $start); close $f; unlink $file;`

// disk is V9: 4 KiB write + fsync inside a server against the pool's own file system.
func (r *run) disk(ctx context.Context) (rows []Row, err error) {
	s := r.host.debianSpec("v9")
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, s)) }()
	f, err := r.host.newFloor(ctx, r.host.debianSpec("floor"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := r.host.create(ctx, s); err != nil {
		return nil, err
	}
	if _, err := r.host.sh(ctx, s.GetId(), booted); err != nil {
		return nil, err
	}
	program := fmt.Sprintf(syncs, unix.SYS_FSYNC)
	seconds := strconv.Itoa(r.pick(3, 1))
	for _, mode := range []struct{ name, text string }{{"over", "over a file that is there"}, {"append", "at the end of a file"}} {
		var inside, outside []float64
		for range r.pick(9, 3) {
			out, _, err := r.host.exec(ctx, s.GetId(), "perl", "-e", program, "/var/tmp/bench", mode.name, seconds)
			if err != nil {
				return rows, err
			}
			pool, err := f.perl(ctx, program, mode.name, seconds)
			if err != nil {
				return rows, err
			}
			a, err1 := strconv.ParseFloat(out, 64)
			b, err2 := strconv.ParseFloat(pool, 64)
			if err := errors.Join(err1, err2); err != nil {
				return rows, err
			}
			inside, outside = append(inside, a), append(outside, b)
		}
		rows = append(rows,
			Row{What: "4 KiB write + fsync " + mode.text + ", in a server", Unit: "/s", Values: inside},
			Row{What: "the same in the pool's file system", Unit: "/s", Values: outside},
			Row{What: "server ÷ pool", Unit: "×", Values: ratios(inside, outside), Target: AtLeast(0.9)})
	}
	return rows, nil
}

// perl runs a program on a file in the pool's file system.
func (f *floor) perl(ctx context.Context, program, mode, seconds string) (out string, err error) {
	err = f.inside(func() error {
		file := filepath.Join(f.dir, uuid.NewString())
		defer os.Remove(file)
		text, err := onThisThread(ctx, "perl", "-e", program, file, mode, seconds)
		out = strings.TrimSpace(text)
		return err
	})
	return out, err
}
