package bench

import "context"

func (r *run) size(ctx context.Context) ([]Row, error)  { return nil, nil }
func (r *run) adopt(ctx context.Context) ([]Row, error) { return nil, nil }
func (r *run) churn(ctx context.Context) ([]Row, error) { return nil, nil }
