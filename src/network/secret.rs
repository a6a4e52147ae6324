//! The secret by which the processes of one job know each other.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::error::NetworkError;

/// Size of a secret, in bytes.
pub const SECRET_BYTES: usize = 32;

/// Size of a proof, in bytes.
pub(super) const PROOF_BYTES: usize = 32;

/// 32 random bytes that every process of a job holds and nobody else.
///
/// It is never printed: its `Debug` form shows nothing of it.
#[derive(Clone)]
pub struct Secret([u8; SECRET_BYTES]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl Secret {
    /// Makes a new secret from the system's random bytes.
    ///
    /// # Errors
    /// [`NetworkError::Random`] if the system gives none.
    pub fn generate() -> Result<Self, NetworkError> {
        random_bytes().map(Self)
    }

    /// Makes a new secret and writes it to a new file that only its owner may read.
    ///
    /// # Errors
    /// [`NetworkError::SecretFile`] if the file exists already or cannot be written,
    /// [`NetworkError::Random`] if there are no random bytes.
    pub fn generate_file(path: &Path) -> Result<Self, NetworkError> {
        let secret = Self::generate()?;
        // The mode is given on creation: there is no moment at which another user could open the
        // file.
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&secret.0)?;
            file.sync_all()
        };
        match write() {
            Ok(()) => Ok(secret),
            Err(source) => {
                Err(NetworkError::SecretFile { path: path.into(), what: "created", source })
            }
        }
    }

    /// Reads the secret from a file of exactly [`SECRET_BYTES`] bytes.
    ///
    /// # Errors
    /// [`NetworkError::SecretExposed`] if anybody but the owner may read or write the file,
    /// [`NetworkError::SecretShape`] if it has another size or is no file,
    /// [`NetworkError::SecretFile`] if it cannot be read.
    pub fn load(path: &Path) -> Result<Self, NetworkError> {
        let unreadable =
            |source| NetworkError::SecretFile { path: path.into(), what: "read", source };
        // Asked before opening too: opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(NetworkError::SecretShape { path: path.into() });
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(NetworkError::SecretExposed { path: path.into(), mode });
        }
        if metadata.len() != SECRET_BYTES as u64 {
            return Err(NetworkError::SecretShape { path: path.into() });
        }
        let mut bytes = [0; SECRET_BYTES];
        file.read_exact(&mut bytes).map_err(unreadable)?;
        Ok(Self(bytes))
    }

    /// Proves knowledge of the secret over `parts`, in the role `role`.
    pub(super) fn prove(&self, role: &str, parts: &[&[u8]]) -> [u8; PROOF_BYTES] {
        self.authenticate(role, parts).finalize().into_bytes().into()
    }

    /// Checks a proof, in a time that does not depend on where it is wrong.
    pub(super) fn verify(&self, role: &str, parts: &[&[u8]], proof: &[u8; PROOF_BYTES]) -> bool {
        self.authenticate(role, parts).verify_slice(proof).is_ok()
    }

    fn authenticate(&self, role: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        // Every part goes in behind its length, so that no two lists of parts give the same bytes.
        for part in [role.as_bytes()].iter().chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Random bytes from the system.
pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N], NetworkError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|source| NetworkError::Random { source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::Directory;

    #[test]
    fn a_generated_file_is_private_and_loads_as_the_same_secret() {
        let directory = Directory::new();
        let path = directory.path().join("secret");
        let made = Secret::generate_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Secret::load(&path).unwrap().0, made.0);
        assert_ne!(made.0, Secret::generate().unwrap().0);
        assert!(matches!(Secret::generate_file(&path), Err(NetworkError::SecretFile { .. })));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_its_name_and_the_remedy() {
        let directory = Directory::new();
        let path = directory.path().join("secret");
        Secret::generate_file(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let message = Secret::load(&path).unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            assert!(message.contains("chmod 600"), "{message}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        Secret::load(&path).unwrap();
    }

    #[test]
    fn a_file_of_another_size_or_kind_is_refused() {
        let directory = Directory::new();
        let path = directory.path().join("secret");
        for size in [0, 31, 33, 4096] {
            fs::write(&path, vec![7; size]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Secret::load(&path), Err(NetworkError::SecretShape { .. })), "{size}");
        }
        assert!(matches!(Secret::load(directory.path()), Err(NetworkError::SecretShape { .. })));
        let missing = directory.path().join("missing");
        assert!(matches!(Secret::load(&missing), Err(NetworkError::SecretFile { .. })));
    }

    #[test]
    fn nothing_of_the_secret_is_printed() {
        let secret = Secret([0xAB; SECRET_BYTES]);
        let text = format!("{secret:?} {secret:#?}");
        assert!(!text.contains("171") && !text.to_lowercase().contains("ab,"), "{text}");
    }

    #[test]
    fn a_proof_holds_for_its_role_and_its_parts_only() {
        let secret = Secret([1; SECRET_BYTES]);
        let proof = secret.prove("a", &[b"xy", b"z"]);
        assert!(secret.verify("a", &[b"xy", b"z"], &proof));
        assert!(!secret.verify("b", &[b"xy", b"z"], &proof));
        assert!(!secret.verify("a", &[b"x", b"yz"], &proof));
        assert!(!Secret([2; SECRET_BYTES]).verify("a", &[b"xy", b"z"], &proof));
    }
}
