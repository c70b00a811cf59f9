package service

import "context"

// follow sends each view that comes until one is the last, the caller goes away or the
// agent stops.
func follow[V any](ctx context.Context, views <-chan V, send func(V) error, last func(V) bool) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case v, ok := <-views:
			if !ok && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !ok {
				return errDraining
			}
			if err := send(v); err != nil {
				return err
			}
			if last(v) {
				return nil
			}
		}
	}
}
