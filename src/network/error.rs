//! What can go wrong before and between the sockets.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::handshake::HandshakeError;

/// Why the processes of a job could not be connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The file of the secret could not be read or written.
    #[error("the secret file {} could not be {what}", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What was tried: `read` or `created`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may read the file of the secret.
    #[error(
        "the secret file {} is open to other users (mode {mode:03o}): make a new secret, or run \
         `chmod 600` on the file if nobody else has read it",
        path.display()
    )]
    SecretExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file of the secret has the wrong size.
    #[error(
        "the secret file {} must be a regular file of exactly 32 bytes: make one with \
         `head -c 32 /dev/urandom`",
        path.display()
    )]
    SecretShape {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random {
        /// What the system said.
        source: getrandom::Error,
    },
    /// An address that others can reach, without a secret.
    #[error(
        "address {address} is not on loopback: give every process the same secret file, or use \
         loopback addresses"
    )]
    Exposed {
        /// The address.
        address: String,
    },
    /// The setup contradicts itself.
    #[error("the processes cannot be connected: {why}")]
    Setup {
        /// What is wrong, and what to do.
        why: String,
    },
    /// An address could not be listened on.
    #[error("process {process} cannot listen on {address}")]
    Bind {
        /// Our own index.
        process: usize,
        /// Our own address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A peer said, or showed, that it will never accept us.
    #[error("process {process} at {address} does not fit")]
    Unfit {
        /// The peer's index.
        process: usize,
        /// Its address.
        address: String,
        /// What does not fit.
        source: HandshakeError,
    },
    /// Not every process was there in time.
    #[error("the processes did not all connect within {waited:?}: {missing}")]
    Timeout {
        /// How long we tried.
        waited: Duration,
        /// Who was missing, and what the last try came to.
        missing: String,
    },
    /// A peer was lost at the very moment the mesh began to stand.
    #[error("process {process} was lost while the processes were starting")]
    PeerLost {
        /// The peer's index.
        process: usize,
    },
    /// A socket or a thread could not be had or set up.
    #[error("{what} failed")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl NetworkError {
    /// Whether trying again cannot help: somebody has to change the configuration first.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::SecretFile { .. }
                | Self::SecretExposed { .. }
                | Self::SecretShape { .. }
                | Self::Exposed { .. }
                | Self::Setup { .. }
                | Self::Unfit { .. }
        )
    }

    /// Shapes an error of the system, for `map_err`.
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
