//! What becomes of calls to storage and to the local disk.

use std::io::ErrorKind;

use super::super::faults::Moment;
use super::{Life, current, dead};
use crate::storage::BlobPath;
use crate::storage::fault::{FaultAction, FaultOp, FaultPoint};

/// Whether a call is about files of a backend. How many there are depends on threads of the backend's own, which no seed
/// rules; and so do sweeps of local copies, which list. They are not part of the trace, and nothing goes wrong with them.
fn is_beside(point: &FaultPoint) -> bool {
    let is_native =
        |path: &BlobPath| path.as_str().contains("/shared/") && !path.as_str().ends_with(".part");
    point.op == FaultOp::List || point.path.as_ref().is_some_and(is_native)
}

impl Life {
    /// What becomes of a call to the local disk. A read that fails after the check of a copy ends the restore, as it would for
    /// a part in the store: so reads do not fail.
    pub(in crate::testing) fn local_call(&self, point: &FaultPoint) -> FaultAction {
        let mut state = self.world.state();
        if state.lives[self.number].killed.is_some() || self.is_aside(&state) {
            return dead(state);
        }
        // Whether copies are swept depends on how many there are, those of files included.
        if state.files_beside {
            return FaultAction::Proceed;
        }
        let path = point.path.as_ref().map_or("", BlobPath::as_str);
        state.trace.event(7, &[point.op as u64]);
        state.trace.text(path);
        state.trace.note(|| format!("  local {:?} {path}", point.op));
        let fails = !matches!(point.op, FaultOp::ReadAt | FaultOp::Read)
            && state.is_newest(self.number)
            && state.faults.local_disk_fails(&format!("local {:?} {path}", point.op));
        if fails {
            FaultAction::FailDeterminate(ErrorKind::StorageFull)
        } else {
            FaultAction::Proceed
        }
    }

    /// What becomes of a call to storage.
    pub(in crate::testing) fn storage_call(&self, point: &FaultPoint) -> FaultAction {
        let mut state = self.world.state();
        let seat = current().map(|seat| seat.number);
        let newest = state.is_newest(self.number);
        if state.lives[self.number].killed.is_some() || self.is_aside(&state) {
            return dead(state);
        }
        if state.files_beside && is_beside(point) {
            return FaultAction::Proceed;
        }
        state.storage_calls += 1;
        let path = point.path.as_ref().map_or("", BlobPath::as_str);
        let calls = state.storage_calls;
        state.trace.event(1, &[point.op as u64, calls]);
        state.trace.text(path);
        state.trace.note(|| format!("  {:?} {path}", point.op));
        if !newest {
            return FaultAction::Proceed;
        }
        let is_manifest = point.op == FaultOp::Create && path.ends_with("/manifest");
        let moment = if is_manifest { Moment::Manifest } else { Moment::StorageCall };
        let mut how = format!("at {:?} {path}", point.op);
        if self.is_building(&state) {
            how.push_str(", while the job is built");
        }
        if state.faults.dies(moment, &how) {
            state = self.die(state, seat, how);
            return match state.lives[self.number].killed {
                Some(_) => dead(state),
                None => FaultAction::Proceed,
            };
        }
        if is_manifest {
            state.manifest = point.path.clone();
        }
        // What goes wrong while a job is started ends it, as its operator would want: only a running one goes on.
        let seats = &state.seats[state.lives[self.number].first_seat..];
        let running = !seats.is_empty() && seats.iter().all(|seat| seat.built && !seat.left);
        if !running
            || matches!(point.op, FaultOp::Open | FaultOp::ReadAt)
            || !state.faults.storage_fails(&format!("{:?} {path}", point.op))
        {
            return FaultAction::Proceed;
        }
        let action = match state.random.below(3) {
            0 => FaultAction::FailIndeterminateAfterEffect,
            1 => FaultAction::FailIndeterminateWithoutEffect,
            _ => FaultAction::FailDeterminate(ErrorKind::StorageFull),
        };
        state.trace.note(|| format!("    {action:?}"));
        action
    }
}
