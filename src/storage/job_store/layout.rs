//! Names of blobs below a job, made and parsed. Numbers have no sign and no leading zeros, so that each blob has one
//! name.

use std::collections::BTreeSet;

use crate::ids::{Attempt, Epoch};
use crate::protocol::registry::AttemptFacts;

pub(super) const JOB: &str = "job";
pub(super) const ATTEMPTS: &str = "attempts";
pub(super) const CHECKPOINTS: &str = "chk";
pub(super) const SHARED: &str = "shared";
pub(super) const HISTORY: &str = "history";
pub(super) const REQUESTS: &str = "requests";
pub(super) const CLAIMED: &str = "claimed";
pub(super) const PINS: &str = "pins";

/// What a blob is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Job,
    /// What the job has taken over.
    Claimed,
    Claim(Attempt),
    Fence(Attempt),
    Reservation(Attempt, Epoch),
    Manifest(Epoch),
    /// A part or a shared file: who wrote it, for which checkpoint.
    Data(Attempt, Epoch),
    History(Epoch),
    /// What a process of the attempt has read to restore.
    Restore(Attempt),
    /// A user keeps the checkpoint.
    Pin(Epoch),
    /// The attempt (0: a user) is about to delete the manifest of the checkpoint.
    Retiring(Attempt, Epoch),
    /// A user's request.
    Request(u64),
    /// An attempt has taken the request.
    Taken(u64),
    /// The answer to the request.
    Answer(u64),
    /// Not ours.
    Other,
}

impl Place {
    pub(super) fn as_manifest(self) -> Option<Epoch> {
        if let Self::Manifest(epoch) = self { Some(epoch) } else { None }
    }

    pub(super) fn as_history(self) -> Option<Epoch> {
        if let Self::History(epoch) = self { Some(epoch) } else { None }
    }

    pub(super) fn as_pin(self) -> Option<Epoch> {
        if let Self::Pin(epoch) = self { Some(epoch) } else { None }
    }

    /// The attempt whose claim, fence or reservation it is.
    pub(super) fn as_attempt(self) -> Option<Attempt> {
        match self {
            Self::Claim(attempt) | Self::Fence(attempt) | Self::Reservation(attempt, _) => {
                Some(attempt)
            }
            _ => None,
        }
    }
}

pub(super) fn claim(attempt: Attempt) -> String {
    format!("{ATTEMPTS}/{attempt}")
}

pub(super) fn fence(attempt: Attempt) -> String {
    format!("{ATTEMPTS}/{attempt}.fence")
}

pub(super) fn reservation(attempt: Attempt, first: Epoch) -> String {
    format!("{ATTEMPTS}/{attempt}.epochs-{first}")
}

pub(super) fn checkpoint(epoch: Epoch) -> String {
    format!("{CHECKPOINTS}/{epoch}")
}

pub(super) fn manifest(epoch: Epoch) -> String {
    format!("{CHECKPOINTS}/{epoch}/manifest")
}

pub(super) fn part(epoch: Epoch, attempt: Attempt, worker: u32) -> String {
    format!("{CHECKPOINTS}/{epoch}/{attempt}-{worker}.part")
}

/// A part that later checkpoints may need.
pub(super) fn layer(epoch: Epoch, attempt: Attempt, worker: u32) -> String {
    format!("{SHARED}/{attempt}-{epoch}-{worker}.part")
}

/// A file of a backend, of one of the instances of a worker.
pub(super) fn native(
    epoch: Epoch,
    attempt: Attempt,
    worker: usize,
    index: usize,
    name: &str,
) -> String {
    format!("{SHARED}/{attempt}-{epoch}-{worker}.{index}-{name}")
}

pub(super) fn history(epoch: Epoch) -> String {
    format!("{HISTORY}/{epoch}")
}

pub(super) fn restore(attempt: Attempt, process: u32) -> String {
    format!("{HISTORY}/restore-{attempt}-{process}")
}

pub(super) fn pin(epoch: Epoch) -> String {
    format!("{PINS}/{epoch}")
}

pub(super) fn retiring(epoch: Epoch, by: Attempt) -> String {
    format!("{CHECKPOINTS}/{epoch}/{by}.retiring")
}

pub(super) fn request(id: u64) -> String {
    format!("{REQUESTS}/{id}")
}

pub(super) fn taken(id: u64) -> String {
    format!("{REQUESTS}/{id}.taken")
}

pub(super) fn answer(id: u64) -> String {
    format!("{REQUESTS}/{id}.answer")
}

pub(super) fn parse(below_job: &str) -> Place {
    let components: Vec<_> = below_job.split('/').collect();
    let parsed = match components[..] {
        [JOB] => Some(Place::Job),
        [CLAIMED] => Some(Place::Claimed),
        [ATTEMPTS, name] => parse_attempt(name),
        [CHECKPOINTS, epoch, "manifest"] => number(epoch).map(|n| Place::Manifest(Epoch(n))),
        [CHECKPOINTS, epoch, file] => match file.strip_suffix(".retiring") {
            Some(by) => parse_retiring(epoch, by),
            None => parse_part(epoch, file),
        },
        [PINS, epoch] => number(epoch).map(|n| Place::Pin(Epoch(n))),
        [SHARED, file] => parse_shared(file),
        [REQUESTS, name] => parse_request(name),
        [HISTORY, name] => parse_history(name),
        _ => None,
    };
    parsed.unwrap_or(Place::Other)
}

fn parse_attempt(name: &str) -> Option<Place> {
    if let Some((attempt, rest)) = name.split_once('.') {
        let attempt = Attempt(number(attempt)?);
        if rest == "fence" {
            return Some(Place::Fence(attempt));
        }
        let first = number(rest.strip_prefix("epochs-")?)?;
        return Some(Place::Reservation(attempt, Epoch(first)));
    }
    Some(Place::Claim(Attempt(number(name)?)))
}

fn parse_part(epoch: &str, name: &str) -> Option<Place> {
    let (attempt, worker) = name.strip_suffix(".part")?.split_once('-')?;
    // Workers count from 0, attempts and epochs from 1.
    if worker != "0" {
        number(worker)?;
    }
    Some(Place::Data(Attempt(number(attempt)?), Epoch(number(epoch)?)))
}

fn parse_history(name: &str) -> Option<Place> {
    let Some(restore) = name.strip_prefix("restore-") else {
        return number(name).map(|n| Place::History(Epoch(n)));
    };
    let (attempt, process) = restore.split_once('-')?;
    if process != "0" {
        number(process)?;
    }
    Some(Place::Restore(Attempt(number(attempt)?)))
}

fn parse_retiring(epoch: &str, by: &str) -> Option<Place> {
    let by = if by == "0" { 0 } else { number(by)? };
    Some(Place::Retiring(Attempt(by), Epoch(number(epoch)?)))
}

fn parse_request(name: &str) -> Option<Place> {
    match name.split_once('.') {
        None => number(name).map(Place::Request),
        Some((id, "taken")) => number(id).map(Place::Taken),
        Some((id, "answer")) => number(id).map(Place::Answer),
        Some(_) => None,
    }
}

fn parse_shared(name: &str) -> Option<Place> {
    let mut pieces = name.splitn(3, '-');
    let (attempt, epoch) = (number(pieces.next()?)?, number(pieces.next()?)?);
    pieces.next()?;
    Some(Place::Data(Attempt(attempt), Epoch(epoch)))
}

/// Reads an attempt or an epoch: from 1.
pub(super) fn number(text: &str) -> Option<u64> {
    let canonical = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    // The last number is left out, so that there is always a next one.
    text.parse().ok().filter(|n| canonical && *n < u64::MAX)
}

pub(super) fn facts(places: impl Iterator<Item = Place>) -> AttemptFacts {
    let mut facts = AttemptFacts::default();
    for place in places {
        match place {
            Place::Claim(attempt) => _ = facts.claims.insert(attempt),
            Place::Fence(attempt) => _ = facts.fences.insert(attempt),
            Place::Reservation(attempt, first) => _ = facts.reservations.insert((attempt, first)),
            _ => {}
        }
    }
    facts
}

/// Epochs for which something was written, whether a manifest or not.
pub(super) fn epochs(places: impl Iterator<Item = Place>) -> BTreeSet<Epoch> {
    let epoch = |place| match place {
        Place::Data(_, epoch) | Place::Manifest(epoch) => Some(epoch),
        _ => None,
    };
    places.filter_map(epoch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_made_is_parsed_as_what_it_is() {
        let (attempt, epoch) = (Attempt(12), Epoch(7));
        assert_eq!(parse(JOB), Place::Job);
        assert_eq!(parse(CLAIMED), Place::Claimed);
        assert_eq!(parse(&claim(attempt)), Place::Claim(attempt));
        assert_eq!(parse(&fence(attempt)), Place::Fence(attempt));
        assert_eq!(parse(&reservation(attempt, epoch)), Place::Reservation(attempt, epoch));
        assert_eq!(parse(&manifest(epoch)), Place::Manifest(epoch));
        for worker in [0, 3, 10] {
            assert_eq!(parse(&part(epoch, attempt, worker)), Place::Data(attempt, epoch));
        }
        assert_eq!(parse(&layer(epoch, attempt, 3)), Place::Data(attempt, epoch));
        let native = native(epoch, attempt, 3, 1, "000012.sst");
        assert_eq!(parse(&native), Place::Data(attempt, epoch));
        assert_eq!(parse("shared/12-7-a-b"), Place::Data(attempt, epoch));
        assert_eq!(parse(&history(epoch)), Place::History(epoch));
        for process in [0, 3, 10] {
            assert_eq!(parse(&restore(attempt, process)), Place::Restore(attempt));
        }
        assert_eq!(parse(&pin(epoch)), Place::Pin(epoch));
        for by in [attempt, Attempt(0)] {
            assert_eq!(parse(&retiring(epoch, by)), Place::Retiring(by, epoch));
        }
        assert_eq!(parse(&request(5)), Place::Request(5));
        assert_eq!(parse(&taken(5)), Place::Taken(5));
        assert_eq!(parse(&answer(5)), Place::Answer(5));
    }

    #[test]
    fn other_names_are_not_taken_for_ours() {
        for other in [
            "",
            "x",
            "job/x",
            "claimed/1",
            "attempts",
            "attempts/x",
            "attempts/01",
            "attempts/1.lock",
            "attempts/1.epochs-",
            "attempts/18446744073709551615",
            "chk/1",
            "chk/1/x",
            "chk/x/manifest",
            "chk/1/manifest/x",
            "chk/1/1.part",
            "chk/1/1-+2.part",
            "chk/1/1-00.part",
            "chk/1/0-1.part",
            "chk/1/00.retiring",
            "chk/1/.retiring",
            "pins/0",
            "pins/1/x",
            "shared/1-2",
            "history/x",
            "history/restore-1",
            "history/restore-1-00",
            "history/restore-0-1",
            "requests/x",
            "requests/1.tmp",
            "requests/0",
        ] {
            assert_eq!(parse(other), Place::Other, "{other}");
        }
    }
}
