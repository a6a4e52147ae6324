//! The private directory of one run: the secret, and the addresses of the processes.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::error::SupervisorError;
use super::{Supervision, environment};
use crate::network::{NetworkError, Secret};

/// Removed with all that is in it when dropped.
#[derive(Debug)]
pub(super) struct RuntimeDir {
    path: PathBuf,
    hostfile: Option<PathBuf>,
}

impl RuntimeDir {
    /// Makes a new directory below `parent` that only its owner may enter, and the secret in it.
    pub fn create(parent: Option<&Path>) -> Result<Self, SupervisorError> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| SupervisorError::RuntimeFile { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&parent).map_err(failed(&parent))?;
        let random = getrandom::u64().map_err(|source| NetworkError::Random { source })?;
        let path = parent.join(format!("highwater-{}-{random:016x}", std::process::id()));
        // Not recursive: a directory that somebody else has put there is an error, not ours to use.
        DirBuilder::new().mode(0o700).create(&path).map_err(failed(&path))?;
        let directory = Self { path, hostfile: None };
        Secret::generate_file(&directory.secret_file())?;
        Ok(directory)
    }

    fn secret_file(&self) -> PathBuf {
        self.path.join("secret")
    }

    /// Writes a new file of free loopback addresses, in place of the last one.
    ///
    /// New ports each time: something left over of the last set of processes may still hold the old
    /// ones. Somebody else may take a port before its process does; that process then fails, and
    /// the next set gets others.
    pub fn new_hostfile(
        &mut self,
        generation: u64,
        processes: usize,
    ) -> Result<PathBuf, SupervisorError> {
        let lines = free_addresses(processes)
            .map_err(SupervisorError::system("finding free ports"))?
            .join("\n");
        let path = self.path.join(format!("hosts-{generation}"));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            writeln!(file, "{lines}")
        };
        write().map_err(|source| SupervisorError::RuntimeFile { path: path.clone(), source })?;
        if let Some(old) = self.hostfile.replace(path.clone()) {
            // At worst one small file more until the end.
            let _ = fs::remove_file(old);
        }
        Ok(path)
    }

    /// What all processes have in their environment; the index of each comes on top.
    pub fn environment(
        &self,
        hostfile: &Path,
        supervision: &Supervision,
    ) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![
            (environment::PROCESSES, supervision.processes.to_string().into()),
            (environment::HOSTFILE, hostfile.into()),
            (environment::SECRET_FILE, self.secret_file().into()),
            (environment::SUPERVISED, std::process::id().to_string().into()),
        ];
        if let Some(workers) = supervision.workers {
            environment.push((environment::WORKERS, workers.to_string().into()));
        }
        environment
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the directory");
        }
    }
}

fn free_addresses(count: usize) -> io::Result<Vec<String>> {
    // All are held until all are found, or one could be found twice.
    let held: io::Result<Vec<_>> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    held?.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}
