// Command summary reads `go test -json` and prints what a person wants to see: go test's
// closing line of every package, all output of what failed, and the totals of the group.
// It exits with 1 if a test failed, was skipped, or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// counts are the totals of a group.
type counts struct {
	packages, passed, failed, skipped int
}

// summary collects events and prints as it goes.
type summary struct {
	out    io.Writer
	counts counts
	// Output by package and test: shown if that test fails, else dropped.
	output map[[2]string][]string
	blamed map[string]bool // packages of which a test has failed
}

func main() {
	group := flag.String("group", "tests", "name of the group in the totals")
	totals := flag.String("totals", "", "file to append the line of totals to")
	flag.Parse()
	start := time.Now()
	s := newSummary(os.Stdout)
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	line := fmt.Sprintf("%4d packages, %5d tests passed, %d failed, %d skipped, %4.0f s: %s\n", s.counts.packages,
		s.counts.passed, s.counts.failed, s.counts.skipped, time.Since(start).Seconds(), *group)
	fmt.Print(line)
	if err := appendTo(*totals, line); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if s.counts.failed > 0 || s.counts.skipped > 0 || s.counts.packages == 0 {
		os.Exit(1)
	}
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, output: map[[2]string][]string{}, blamed: map[string]bool{}}
}

// appendTo adds the line to the file; an empty name means nowhere.
func appendTo(file, line string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line); err != nil {
		return err
	}
	return f.Close()
}

// read handles every event up to the end of r. A line that is no event is printed as it is.
func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(s.out, line)
			} else {
				s.handle(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) handle(e event) {
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.closePackage(e)
			return
		}
		s.closeTest(e)
		delete(s.output, key)
	}
}

func (s *summary) closeTest(e event) {
	switch e.Action {
	case "pass":
		s.counts.passed++
		return
	case "skip":
		s.counts.skipped++
	case "fail":
		s.counts.failed++
		s.blamed[e.Package] = true
	}
	fmt.Fprint(s.out, strings.Join(s.output[[2]string{e.Package, e.Test}], ""))
}

// closePackage prints the package's own output. After a pass or skip that is its closing
// line alone ("ok", "? … [no test files]"); what a failed one printed last may be a crash.
func (s *summary) closePackage(e event) {
	own := s.output[[2]string{e.Package, ""}]
	for _, line := range own {
		closing := strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "? ") || strings.HasPrefix(line, "\t")
		if e.Action == "fail" || closing && !strings.Contains(line, "[no test files]") {
			fmt.Fprint(s.out, line)
		}
	}
	if e.Action == "fail" {
		s.unfinished(e.Package)
		if !s.blamed[e.Package] { // it did not build, crashed or ran out of time
			s.counts.failed++
		}
	}
	if e.Action != "skip" {
		s.counts.packages++
	}
	delete(s.output, [2]string{e.Package, ""})
}

// unfinished prints the output of tests that never ended: a panic or a timeout took them along.
func (s *summary) unfinished(pkg string) {
	for key, lines := range s.output {
		if key[0] == pkg && key[1] != "" {
			fmt.Fprint(s.out, strings.Join(lines, ""))
			delete(s.output, key)
		}
	}
}
