//! Names of files: made and parsed here and nowhere else. Parsing is strict, so that a foreign file
//! is never taken for one of ours.

use std::path::{Path, PathBuf};

use super::{FileTransaction, PendingFile};
use crate::connect::SinkContext;
use crate::ids::{Attempt, Lineage, Name};

/// The directory inside the user's that holds everything that is not committed.
const HIDDEN: &str = ".highwater";

/// Room for the names of job, operator and extension in a file name of 255 bytes, beside `part-~~`,
/// five numbers of 20 digits, four dashes and the dot.
pub(super) const NAMES_BYTES_MAX: usize = 255 - 7 - 5 * 20 - 4 - 1;

/// The transactions of one subtask of one attempt: they are committed in order, and share a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Series {
    pub lineage: Lineage,
    pub attempt: Attempt,
    pub subtask: u64,
}

impl Series {
    pub fn of(context: &SinkContext) -> Self {
        let SinkContext { lineage, attempt, .. } = *context;
        Self { lineage, attempt, subtask: context.subtask as u64 }
    }
}

/// Where one operator of one job has its files.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The user's directory, with the committed files.
    pub directory: PathBuf,
    /// The directory with the others.
    pub hidden: PathBuf,
}

/// What a name in the hidden directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    Pending {
        series: Series,
        sequence: u64,
    },
    Ledger(Series),
    /// A ledger that was being written by this attempt.
    LedgerTemporary(Attempt),
}

impl Place {
    pub fn new(directory: &Path, job: &Name, operator: &Name) -> Self {
        let hidden = directory.join(HIDDEN).join(job.as_str()).join(operator.as_str());
        Self { directory: directory.to_owned(), hidden }
    }

    pub fn pending(&self, series: Series, sequence: u64) -> PathBuf {
        let Series { lineage, attempt, subtask } = series;
        self.hidden.join(format!("{lineage}-{attempt}-{subtask}-{sequence}.pending"))
    }

    pub fn ledger(&self, series: Series) -> PathBuf {
        let Series { lineage, attempt, subtask } = series;
        self.hidden.join(format!("{lineage}-{attempt}-{subtask}.ledger"))
    }

    /// The name under which a ledger is written. It is the writing subtask's own, so that a process
    /// that was thought dead never writes into the same file.
    pub fn ledger_temporary(&self, series: Series, by: &SinkContext) -> PathBuf {
        let Series { lineage, attempt, subtask } = series;
        let (by_attempt, by_subtask) = (by.attempt, by.subtask);
        self.hidden.join(format!(
            "{lineage}-{attempt}-{subtask}-{by_attempt}-{by_subtask}.ledger-temporary"
        ))
    }

    /// The pending name and the final name of each file of a transaction.
    pub fn files<'a>(
        &'a self,
        transaction: &'a FileTransaction,
    ) -> impl Iterator<Item = (PathBuf, PathBuf, &'a PendingFile)> {
        let FileTransaction { job, operator, id, extension, files } = transaction;
        let series = transaction.series();
        files.iter().enumerate().map(move |(index, file)| {
            let number = if index == 0 { String::new() } else { format!("-{index}") };
            let name = format!(
                "part-{job}~{operator}~{}-{}-{}-{}{number}.{extension}",
                id.lineage, id.attempt, id.subtask, id.epoch
            );
            (self.pending(series, file.sequence), self.directory.join(name), file)
        })
    }
}

impl FileTransaction {
    pub(super) fn series(&self) -> Series {
        Series { lineage: self.id.lineage, attempt: self.id.attempt, subtask: self.id.subtask }
    }
}

/// Reads a name of the hidden directory. `None` if it is no name that this program gives.
pub(super) fn parse(name: &str) -> Option<Hidden> {
    let (stem, extension) = name.split_once('.')?;
    let numbers: Vec<u64> = stem.split('-').map(number).collect::<Option<_>>()?;
    let series = |lineage, attempt, subtask| Series {
        lineage: Lineage(lineage),
        attempt: Attempt(attempt),
        subtask,
    };
    match (extension, numbers.as_slice()) {
        ("pending", &[lineage, attempt, subtask, sequence]) => {
            Some(Hidden::Pending { series: series(lineage, attempt, subtask), sequence })
        }
        ("ledger", &[lineage, attempt, subtask]) => {
            Some(Hidden::Ledger(series(lineage, attempt, subtask)))
        }
        ("ledger-temporary", &[_, _, _, by_attempt, _]) => {
            Some(Hidden::LedgerTemporary(Attempt(by_attempt)))
        }
        _ => None,
    }
}

/// Reads a number as it is written here: digits, no sign, no leading zero.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Hidden, NAMES_BYTES_MAX, Place, Series, parse};
    use crate::connect::TransactionId;
    use crate::connect::conformance::context;
    use crate::connect::file_sink::{FileTransaction, PendingFile};
    use crate::ids::{Attempt, Epoch, Lineage, Name};

    #[test]
    fn names_are_read_back_as_they_were_made_and_others_are_foreign() {
        let context = context(7, 2, 4);
        let place = Place::new(Path::new("/out"), &context.job, &context.operator);
        let series = Series { lineage: Lineage(3), attempt: Attempt(5), subtask: 1 };
        let read = |path: std::path::PathBuf| parse(path.file_name().unwrap().to_str().unwrap());
        let pending = Hidden::Pending { series, sequence: 9 };
        assert_eq!(read(place.pending(series, 9)), Some(pending));
        assert_eq!(read(place.ledger(series)), Some(Hidden::Ledger(series)));
        let temporary = Hidden::LedgerTemporary(Attempt(7));
        assert_eq!(read(place.ledger_temporary(series, &context)), Some(temporary));
        for foreign in [
            "",
            "3-5-1-9",
            "3-5-1-09.pending",
            "+3-5-1-9.pending",
            "3-5-1.pending",
            "3-5-1-9.pending.bak",
            "3-5-1-9-9.pending",
            "3-5-1-99999999999999999999.pending",
            "a-5-1-9.pending",
            "3-5-1-9.ledger",
        ] {
            assert_eq!(parse(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn the_longest_name_is_a_file_name_and_no_two_jobs_share_one() {
        let name = |length: usize| Name::new("x".repeat(length)).unwrap();
        let max = u64::MAX;
        let id = TransactionId {
            lineage: Lineage(max),
            attempt: Attempt(max),
            subtask: max,
            epoch: Epoch(max),
        };
        let mut transaction = FileTransaction {
            job: name(70),
            operator: name(NAMES_BYTES_MAX - 73),
            id,
            extension: name(3),
            files: vec![PendingFile { sequence: 0, bytes: 1 }; 3],
        };
        let last = |transaction: &FileTransaction| {
            let place = Place::new(Path::new(""), &transaction.job, &transaction.operator);
            place.files(transaction).last().unwrap().1.to_str().unwrap().to_owned()
        };
        assert!(last(&transaction).len() <= 255 - 19, "all but 20 digits of the number of files");
        (transaction.job, transaction.operator) =
            (Name::new("a-b").unwrap(), Name::new("c").unwrap());
        let one = last(&transaction);
        (transaction.job, transaction.operator) =
            (Name::new("a").unwrap(), Name::new("b-c").unwrap());
        assert_ne!(one, last(&transaction));
    }
}
