//! How two processes make sure of each other, before timely sees their socket.
//!
//! ```text
//! connector                                      acceptor
//!    | -- hello: who, to whom, what for, nonce -->  |
//!    | <-- challenge: nonce, proof ---------------- |   the acceptor proves the secret first,
//!    | -- proof ----------------------------------> |   then the connector;
//!    | <-- verdict: accepted or refused, proof ---- |   only then anything of the job is told
//! ```
//! Every message is a frame: its length (4 bytes, little-endian), then magic, protocol version, and
//! the message in postcard. A message of another version is recognised by the first ten bytes;
//! nothing after them is read.
//!
//! # Invariants
//! * A proof is an HMAC-SHA256 over the role and all bytes said so far, both nonces among them. So
//!   none can be replayed, turned back on its sender, or used for another job, process, purpose or
//!   attempt.
//! * Whoever cannot prove the secret learns nothing but the protocol version, and can say nothing
//!   that is believed but a protocol version.
//! * Lengths are checked before anything is allocated; a peer that has proved nothing may send 512
//!   bytes a frame.
//! * A handshake ends by its deadline, whatever the peer sends and however slowly.
//!
//! # Failure
//! Every error closes the connection and concerns no other. The connector decides by
//! [`HandshakeError::is_lasting`] whether to try again.
//!
//! # Source
//! The usual challenge and response with roles (ISO/IEC 9798-4, three passes), and a fourth for the
//! answer.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::secret::{PROOF_BYTES, Secret};
use crate::ids::{Attempt, Name};

/// Version of the handshake and of what follows it. Processes of one job must agree on it.
pub const PROTOCOL_VERSION: u16 = 1;

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Time for one handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest frame from a peer that has proved nothing, in bytes.
const UNPROVEN_BYTES_MAX: usize = 512;

const MAGIC: [u8; 8] = *b"HWPEER\r\n";
const PREFIX_BYTES: usize = MAGIC.len() + 2;

const ACCEPTOR: &str = "highwater acceptor";
const CONNECTOR: &str = "highwater connector";
const VERDICT: &str = "highwater verdict";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// Timely's.
    Data,
    /// Signs of life.
    Heartbeat,
}

/// What the connecting side says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub job: Name,
    /// Number of processes of the job.
    pub processes: u32,
    /// Index of the connecting process.
    pub process: u32,
    /// Index of the process that it believes to speak to.
    pub peer: u32,
    pub purpose: Purpose,
    /// The attempt it takes part in; none before process 0 has told it.
    pub attempt: Option<Attempt>,
    /// The same for all connections that a process makes in one try, so that the halves of two
    /// tries never mix.
    pub session: [u8; 16],
    pub nonce: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Challenge {
    nonce: [u8; 32],
    proof: [u8; PROOF_BYTES],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    proof: [u8; PROOF_BYTES],
}

/// How the accepting side decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    Accepted { attempt: Attempt, announcement: Vec<u8> },
    Refused(Refusal),
}

/// Why a process that holds the secret is refused all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It belongs to another job.
    #[error("it runs job {ours}, not {theirs}")]
    Job {
        /// The job of the process that refuses.
        ours: Name,
        /// The job of the one refused.
        theirs: Name,
    },
    /// It counts another number of processes.
    #[error("it counts {ours} processes, not {theirs}")]
    Processes {
        /// The number that the process that refuses was given.
        ours: u32,
        /// The number that the one refused was given.
        theirs: u32,
    },
    /// It took us for another process, or its own index makes no sense to us.
    #[error(
        "it is process {ours}, and expects no connection of process {theirs} to process {meant}"
    )]
    Index {
        /// Index of the process that refuses.
        ours: u32,
        /// Index of the one refused.
        theirs: u32,
        /// Index of the process that the refused one meant to reach.
        meant: u32,
    },
    /// It takes part in another attempt.
    #[error("it takes part in attempt {ours}, not in {}", Known(*theirs))]
    Attempt {
        /// The attempt of the process that refuses.
        ours: Attempt,
        /// That of the one refused.
        theirs: Option<Attempt>,
    },
    /// Its index is taken by a process that is connected.
    #[error("a process {theirs} is connected already")]
    Duplicate {
        /// Index of the one refused.
        theirs: u32,
    },
}

struct Known(Option<Attempt>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(attempt) => write!(f, "attempt {attempt}"),
            None => f.write_str("an unknown one"),
        }
    }
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer did not answer in time.
    #[error("the peer did not finish the handshake in time")]
    Late,
    /// The peer announced a frame that is too long.
    #[error("the peer sent a frame of {bytes} bytes, where {bytes_max} are allowed")]
    TooLong {
        /// The announced length.
        bytes: usize,
        /// The longest allowed here.
        bytes_max: usize,
    },
    /// The peer speaks something else.
    #[error("the peer does not speak the protocol of highwater")]
    Foreign,
    /// The peer speaks another version of the protocol.
    #[error(
        "the peer speaks version {theirs} of the protocol, this program version {}: build all \
         processes from one program",
        PROTOCOL_VERSION
    )]
    Version {
        /// The peer's version.
        theirs: u16,
    },
    /// The peer sent a message that is none.
    #[error("the peer sent a malformed message")]
    Malformed,
    /// The peer does not hold our secret.
    #[error("the peer does not hold the same secret: give all processes the same secret file")]
    Unproven,
    /// The peer holds our secret and refused us.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    /// There were no random bytes for a nonce.
    #[error("the system gave no random bytes")]
    Random,
}

impl HandshakeError {
    /// Whether trying again cannot help. Silence, strangers and leftovers of an older attempt go
    /// away; another job or program does not.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Version { .. } => true,
            Self::Refused(refusal) => {
                !matches!(refusal, Refusal::Attempt { .. } | Refusal::Duplicate { .. })
            }
            _ => false,
        }
    }

    /// Whether it says more than that nobody answered.
    pub(super) fn is_telling(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Closed | Self::Late)
    }
}

/// The connecting side. Returns the attempt and the announcement of the accepting side.
///
/// Effect: on success the stream is authenticated, and the next byte on it is the first that is not
/// ours.
pub(super) fn initiate(
    stream: &TcpStream,
    secret: &Secret,
    hello: &Hello,
    deadline: Instant,
) -> Result<(Attempt, Vec<u8>), HandshakeError> {
    let mut wire = Wire { stream, deadline };
    let hello_bytes = encode(hello);
    wire.write_frame(&hello_bytes)?;
    let challenge_bytes = wire.read_frame(UNPROVEN_BYTES_MAX)?;
    let challenge: Challenge = decode(&challenge_bytes)?;
    if !secret.verify(ACCEPTOR, &[&hello_bytes, &challenge.nonce], &challenge.proof) {
        return Err(HandshakeError::Unproven);
    }
    let proof = secret.prove(CONNECTOR, &[&hello_bytes, &challenge_bytes]);
    wire.write_frame(&encode(&Proof { proof }))?;
    let verdict_bytes = wire.read_frame(FRAME_BYTES_MAX)?;
    let (verdict, proof): (Verdict, [u8; PROOF_BYTES]) = decode(&verdict_bytes)?;
    if !secret.verify(VERDICT, &[&hello_bytes, &challenge_bytes, &encode(&verdict)], &proof) {
        return Err(HandshakeError::Unproven);
    }
    match verdict {
        Verdict::Accepted { attempt, announcement } => Ok((attempt, announcement)),
        Verdict::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
    }
}

/// A peer that holds the secret and waits for our verdict.
#[derive(Debug)]
pub(super) struct Applicant {
    pub hello: Hello,
    stream: TcpStream,
    hello_bytes: Vec<u8>,
    challenge_bytes: Vec<u8>,
    deadline: Instant,
}

/// The accepting side, up to the verdict.
pub(super) fn respond(
    stream: TcpStream,
    secret: &Secret,
    deadline: Instant,
) -> Result<Applicant, HandshakeError> {
    let mut wire = Wire { stream: &stream, deadline };
    let hello_bytes = wire.read_frame(UNPROVEN_BYTES_MAX)?;
    let hello: Hello = match decode(&hello_bytes) {
        Err(HandshakeError::Version { theirs }) => {
            // A frame of the prefix alone: what a peer of any version can read.
            wire.write_frame(&encode(&()))?;
            return Err(HandshakeError::Version { theirs });
        }
        hello => hello?,
    };
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|_| HandshakeError::Random)?;
    let proof = secret.prove(ACCEPTOR, &[&hello_bytes, &nonce]);
    let challenge_bytes = encode(&Challenge { nonce, proof });
    wire.write_frame(&challenge_bytes)?;
    let Proof { proof } = decode(&wire.read_frame(UNPROVEN_BYTES_MAX)?)?;
    if !secret.verify(CONNECTOR, &[&hello_bytes, &challenge_bytes], &proof) {
        return Err(HandshakeError::Unproven);
    }
    Ok(Applicant { hello, stream, hello_bytes, challenge_bytes, deadline })
}

impl Applicant {
    /// Tells the peer the verdict, and hands over its socket.
    pub fn answer(self, secret: &Secret, verdict: &Verdict) -> Result<TcpStream, HandshakeError> {
        let parts: [&[u8]; 3] = [&self.hello_bytes, &self.challenge_bytes, &encode(verdict)];
        let proof = secret.prove(VERDICT, &parts);
        let mut wire = Wire { stream: &self.stream, deadline: self.deadline };
        wire.write_frame(&encode(&(verdict, proof)))?;
        Ok(self.stream)
    }
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    postcard::to_extend(message, bytes).expect("a message holds nothing that cannot be encoded")
}

/// Total: any bytes in, a message or an error out.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HandshakeError> {
    let (prefix, message) =
        bytes.split_first_chunk::<PREFIX_BYTES>().ok_or(HandshakeError::Foreign)?;
    let Some(version) = prefix.strip_prefix(&MAGIC) else { return Err(HandshakeError::Foreign) };
    let theirs = u16::from_le_bytes([version[0], version[1]]);
    if theirs != PROTOCOL_VERSION {
        return Err(HandshakeError::Version { theirs });
    }
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        _ => Err(HandshakeError::Malformed),
    }
}

/// A socket on which everything must be done by a deadline.
struct Wire<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Wire<'_> {
    fn write_frame(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let length = u32::try_from(bytes.len()).ok().filter(|n| *n as usize <= FRAME_BYTES_MAX);
        let length = length.expect("callers bound what they send: the announcement, when set up");
        // One buffer: two small writes would meet the peer's delayed acknowledgement.
        let mut frame = Vec::with_capacity(4 + bytes.len());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(bytes);
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let left = self.left()?;
            self.stream.set_write_timeout(Some(left)).map_err(HandshakeError::Io)?;
            match self.stream.write(rest) {
                Ok(0) => return Err(HandshakeError::Closed),
                Ok(n) => rest = &rest[n..],
                Err(e) => still_open(e)?,
            }
        }
        Ok(())
    }

    fn read_frame(&mut self, bytes_max: usize) -> Result<Vec<u8>, HandshakeError> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > bytes_max {
            return Err(HandshakeError::TooLong { bytes, bytes_max });
        }
        let mut frame = vec![0; bytes];
        self.read_exact(&mut frame)?;
        Ok(frame)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), HandshakeError> {
        let mut filled = 0;
        while filled < buffer.len() {
            // Set anew for every read: a peer that drips bytes gets no more time than a silent one.
            let left = self.left()?;
            self.stream.set_read_timeout(Some(left)).map_err(HandshakeError::Io)?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(HandshakeError::Closed),
                Ok(n) => filled += n,
                Err(e) => still_open(e)?,
            }
        }
        Ok(())
    }

    fn left(&self) -> Result<Duration, HandshakeError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(HandshakeError::Late) } else { Ok(left) }
    }
}

fn still_open(error: io::Error) -> Result<(), HandshakeError> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    match error.kind() {
        // The deadline itself is looked at before the next call.
        Interrupted | WouldBlock | TimedOut => Ok(()),
        BrokenPipe | ConnectionReset => Err(HandshakeError::Closed),
        _ => Err(HandshakeError::Io(error)),
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
