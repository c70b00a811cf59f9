package vserver

import (
	"context"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// wanted is the power after a spec was accepted: what it says, else what was.
func wanted(p, was Power) Power {
	if p == PowerUnmanaged {
		return was
	}
	return p
}

// SetPower carries out one power action. Where the spec manages power, the result becomes
// the wanted one. A zero timeout means the server's own.
func (m *Manager) SetPower(ctx context.Context, idOrName string, a PowerAction, timeout time.Duration) (View, error) {
	if timeout < 0 || timeout > maxShutdown {
		return View{}, fault.Field("timeout", "timeout %s: want 0s … 1h", timeout)
	}
	interrupt := a == ActionKill || a == ActionStart && m.recovering(idOrName) // who starts it knows better than what it waits for
	return m.change(ctx, idOrName, string(a), interrupt, func(rec *Record) error {
		if err := rec.operable(string(a)); err != nil {
			return err
		}
		rec.Force, rec.Timeout = a == ActionKill, timeout
		switch a {
		case ActionStart:
			if rec.Want != PowerSuspended {
				rec.Want = PowerRunning
			}
		case ActionStop, ActionKill:
			rec.Want = PowerStopped
		case ActionSuspend:
			if rec.Want == PowerStopped {
				return fault.New(fault.Precondition, "suspend server %s: it is stopped; start it first", rec.Spec.Name)
			}
			rec.Want = PowerSuspended
		case ActionResume:
			if rec.Want == PowerStopped {
				return fault.New(fault.Precondition, "resume server %s: it is stopped; start it instead", rec.Spec.Name)
			}
			rec.Want = PowerRunning
		case ActionReboot:
			if rec.Want == PowerStopped {
				return fault.New(fault.Precondition, "reboot server %s: it is stopped; start it instead", rec.Spec.Name)
			}
			rec.Want, rec.Rebooting = PowerRunning, true
		default:
			return fault.Field("action", "power action %q: want start, stop, kill, suspend, resume or reboot", a)
		}
		if rec.Spec.Power != PowerUnmanaged {
			rec.Spec.Power, rec.Applied.Power = rec.Want, rec.Want
		}
		return nil
	})
}
