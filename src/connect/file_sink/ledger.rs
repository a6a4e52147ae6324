//! The ledger of one series of transactions: which were committed. A small file, replaced
//! atomically.
//!
//! Invariant: an epoch is known (begun or done) from before the first of its files is renamed, and
//! for as long as none of its files was abandoned.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failed;
use super::fs::Fs;
use super::names::{Place, Series};
use crate::connect::{ConnectError, SinkContext};
use crate::ids::Epoch;

const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    version: u16,
    /// All transactions up to this epoch are committed. 0: none.
    done: Epoch,
    /// Epochs whose commit has begun, each with the sequence numbers of its pending files.
    begun: BTreeMap<Epoch, Vec<u64>>,
}

/// The version alone, which every version of the file has.
#[derive(Deserialize)]
struct Header {
    version: u16,
}

impl Ledger {
    /// Whether the commit of an epoch has begun at least, so that a pending file that is absent was
    /// renamed.
    pub fn knows(&self, epoch: Epoch) -> bool {
        self.is_done(epoch) || self.begun.contains_key(&epoch)
    }

    /// Whether an epoch is committed for good.
    pub fn is_done(&self, epoch: Epoch) -> bool {
        epoch <= self.done
    }

    /// Notes that the commit of an epoch begins.
    pub fn begin(&mut self, epoch: Epoch, sequences: Vec<u64>) {
        self.begun.insert(epoch, sequences);
    }

    /// Forgets the epochs of which a pending file `is_abandoned`. Returns whether there were any.
    pub fn forget(&mut self, is_abandoned: impl Fn(u64) -> bool) -> bool {
        let before = self.begun.len();
        self.begun.retain(|_, sequences| !sequences.iter().any(|sequence| is_abandoned(*sequence)));
        self.begun.len() < before
    }

    /// Notes as done the lowest of the begun epochs that have no pending file left. Their renames
    /// are synced first: an epoch that is done is never looked at again.
    pub fn settle(
        &mut self,
        fs: &dyn Fs,
        place: &Place,
        series: Series,
    ) -> Result<(), ConnectError> {
        if self.begun.is_empty() {
            return Ok(());
        }
        sync(fs, &place.directory)?;
        sync(fs, &place.hidden)?;
        while let Some(entry) = self.begun.first_entry() {
            for sequence in entry.get() {
                let pending = place.pending(series, *sequence);
                if fs.size(&pending).map_err(failed("looked at", &pending))?.is_some() {
                    return Ok(());
                }
            }
            self.done = self.done.max(*entry.key());
            entry.remove();
        }
        Ok(())
    }

    /// Reads the ledger of a series: empty if there is none.
    pub fn read(fs: &dyn Fs, place: &Place, series: Series) -> Result<Self, ConnectError> {
        let path = place.ledger(series);
        match fs.read(&path).map_err(failed("read", &path))? {
            None => Ok(Self { version: VERSION, done: Epoch(0), begun: BTreeMap::new() }),
            Some(bytes) => decode(&bytes).map_err(|why| {
                ConnectError::new(format!(
                    "{} {why}: without it a commit cannot tell whether it was made before",
                    path.display()
                ))
            }),
        }
    }

    /// Writes the ledger of a series, durably, in the place of the one before.
    pub fn write(
        &self,
        fs: &dyn Fs,
        place: &Place,
        series: Series,
        by: &SinkContext,
    ) -> Result<(), ConnectError> {
        let path = place.ledger(series);
        let temporary = place.ledger_temporary(series, by);
        let bytes = self.encode(&path)?;
        fs.remove(&temporary).map_err(failed("removed", &temporary))?;
        let mut file = fs.create(&temporary).map_err(failed("created", &temporary))?;
        file.append(&bytes).map_err(failed("written", &temporary))?;
        file.sync().map_err(failed("synced", &temporary))?;
        drop(file);
        fs.rename(&temporary, &path).map_err(failed("replaced", &path))?;
        sync(fs, &place.hidden)
    }

    /// A line of JSON, and a line with its checksum.
    fn encode(&self, path: &Path) -> Result<Vec<u8>, ConnectError> {
        let json = serde_json::to_string(self).map_err(|error| {
            ConnectError::caused(format!("{} could not be encoded", path.display()), error)
        })?;
        Ok(format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes())).into_bytes())
    }
}

/// Reads what `encode` wrote. The error continues a sentence that begins with the file's name.
fn decode(bytes: &[u8]) -> Result<Ledger, String> {
    let damaged = || "is damaged".to_owned();
    let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
    let (json, checksum) =
        text.strip_suffix('\n').and_then(|text| text.split_once('\n')).ok_or_else(damaged)?;
    if checksum != format!("{:08x}", crc32c::crc32c(json.as_bytes())) {
        return Err(damaged());
    }
    let header: Header = serde_json::from_str(json).map_err(|_| damaged())?;
    if header.version > VERSION {
        return Err(format!(
            "has version {} and this program reads up to {VERSION}",
            header.version
        ));
    }
    serde_json::from_str(json).map_err(|_| damaged())
}

/// Makes the names in a directory durable.
pub(super) fn sync(fs: &dyn Fs, directory: &Path) -> Result<(), ConnectError> {
    fs.sync_directory(directory).map_err(failed("synced", directory))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Ledger, decode};
    use crate::ids::Epoch;

    #[test]
    fn a_ledger_is_read_as_it_was_written_and_a_damaged_one_not_at_all() {
        let begun = [(Epoch(8), vec![3, 4]), (Epoch(9), vec![])].into();
        let ledger = Ledger { version: 1, done: Epoch(7), begun };
        let bytes = ledger.encode(Path::new("x")).unwrap();
        assert_eq!(decode(&bytes).unwrap(), ledger);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 4;
            assert!(decode(&damaged).is_err(), "byte {index}");
            assert!(decode(&bytes[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn a_ledger_of_a_later_version_is_refused_as_such() {
        let json = r#"{"version":2,"something":"else"}"#;
        let text = format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes()));
        assert!(decode(text.as_bytes()).unwrap_err().contains("version 2"));
    }
}
