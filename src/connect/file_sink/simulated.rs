//! A file system in memory that can be stopped between any two operations, and can lose what was
//! not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::fs::{Fs, FsFile};

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process dies: what it did remains.
    Kill,
    /// The machine dies: only what was synced remains.
    Power,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Simulated(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The names that a process sees, each with the index of its content.
    names: BTreeMap<PathBuf, usize>,
    /// The names that a power cut leaves. Each directory is synced on its own, so a file renamed
    /// from one to another may have both names or none.
    durable: BTreeMap<PathBuf, usize>,
    contents: Vec<Content>,
    /// How many more operations succeed.
    steps_left: Option<u64>,
    /// Files that get a name in this directory are taken away at once, into `taken`.
    consumer: Option<PathBuf>,
    taken: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => return Err(io::Error::other("stopped")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
}

impl Simulated {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets this many more operations succeed, and none after them.
    pub fn stop_after(&self, steps: u64) {
        self.state().steps_left = Some(steps);
    }

    /// Counts as an operation that does nothing.
    pub fn step(&self) -> io::Result<()> {
        self.state().step()
    }

    /// Ends a run, and lets operations succeed again.
    pub fn crash(&self, how: Crash) {
        let mut state = self.state();
        state.steps_left = None;
        if how == Crash::Power {
            state.names = state.durable.clone();
            for content in &mut state.contents {
                content.bytes.truncate(content.synced);
            }
        }
    }

    /// Takes files away as soon as they appear in this directory.
    pub fn consume(&self, directory: &Path) {
        self.state().consumer = Some(directory.to_owned());
    }

    /// The contents of the files in a directory, and of those that were taken away.
    pub fn visible(&self, directory: &Path) -> Vec<Vec<u8>> {
        let state = self.state();
        let there = state.names.iter().filter(|(path, _)| path.parent() == Some(directory));
        let there = there.map(|(_, content)| state.contents[*content].bytes.clone());
        there.chain(state.taken.iter().cloned()).collect()
    }
}

impl Fs for Simulated {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let mut state = self.state();
        state.step()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let index = state.contents.len();
        state.contents.push(Content::default());
        state.names.insert(path.to_owned(), index);
        Ok(Box::new(SimulatedFile { fs: self.clone(), index }))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        let state = self.state();
        Ok(state.names.get(path).map(|content| state.contents[*content].bytes.len() as u64))
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let state = self.state();
        Ok(state.names.get(path).map(|content| state.contents[*content].bytes.clone()))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let there = state.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(there.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let content = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        if state.consumer.as_deref() == to.parent() {
            let bytes = state.contents[content].bytes.clone();
            state.taken.push(bytes);
        } else {
            state.names.insert(to.to_owned(), content);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.names.remove(path);
        Ok(())
    }

    fn make_directories(&self, _: &Path) -> io::Result<()> {
        self.step()
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let inside = |path: &PathBuf| path.parent() == Some(directory);
        state.durable.retain(|path, _| !inside(path));
        let now: Vec<_> = state
            .names
            .iter()
            .filter(|(path, _)| inside(path))
            .map(|(p, c)| (p.clone(), *c))
            .collect();
        state.durable.extend(now);
        Ok(())
    }
}

struct SimulatedFile {
    fs: Simulated,
    index: usize,
}

impl FsFile for SimulatedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.fs.state();
        let stopped = state.step();
        // A write that is interrupted has written a part.
        let part = if stopped.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        state.contents[self.index].bytes.extend_from_slice(part);
        stopped
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.fs.state();
        state.step()?;
        let content = &mut state.contents[self.index];
        content.synced = content.bytes.len();
        Ok(())
    }
}
