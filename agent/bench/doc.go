// Package bench measures what reflejo promises about speed, accuracy and size, as ratios:
// against a floor (the bare system calls, the pool's own file system, a boot by hand) and,
// where lxd is installed, against LXD, all in the same run on the same machine.
//
//	report, err := bench.Run(ctx, bench.Config{Bin: "bin", Dir: ".cache/bench", Log: os.Stderr})
//	fmt.Print(report.Text())
//
// The contestants of one figure take turns, round by round, so that other work on the
// machine meets all of them; the medians are compared. A benchmark reports whether a target
// is met and never fails because it is not: it fails when something could not be measured.
// Run uses a test host of its own (package testbed) and leaves nothing behind.
package bench
