// Package schedule decides when something is due and which copies of it are kept. It is
// pure: times come in, decisions go out.
package schedule

// Keep says how many copies stay: the newest of each of the last so many hours, days, weeks
// and months that have one, and the Last newest whatever their age. All zero: all stay.
type Keep struct {
	Last    int
	Hourly  int
	Daily   int
	Weekly  int
	Monthly int
}
