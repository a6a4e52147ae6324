//! Connects every pair of a job's processes, all of them or none.
//!
//! ```text
//! process 0            process p                        process q > p
//!   listen               listen                           listen
//!   <--- data, heartbeat -- connect, learns attempt
//!   <--------------------------------------- data, heartbeat -- connect, learns attempt
//!                        <-- data, heartbeat -- connect
//!   <------- READY --------                               |
//!   <---------------------------------------- READY ------
//!   -------- GO ---------->
//!   ----------------------------------------- GO -------->
//! ```
//! # States of a process p > 0
//! | state   | event                                  | next                                    |
//! |---------|----------------------------------------|-----------------------------------------|
//! | joining | process 0 accepts: attempt, blob       | joining 1, 2, .. p-1                    |
//! | joining | refused, unreachable, silent           | joining, after 20 to 200 ms             |
//! | joining | p-1 accepts                            | hosting                                 |
//! | hosting | a process q > p connects twice         | hosting; when all have: READY, waiting  |
//! | hosting | a connection to q > p closes           | hosting, q may come again               |
//! | waiting | GO                                     | the mesh stands                         |
//! | any     | a connection to a lower process closes | joining process 0, in a new session     |
//! | waiting | any connection closes                  | joining process 0, in a new session     |
//! | any     | `connect_timeout` is over              | failed                                  |
//!
//! Process 0 is hosting from the start, forgets whoever closes, and says GO when all are connected
//! and READY.
//!
//! # Invariants
//! * Both connections of a pair come from one session of the connecting process.
//! * A process joins others only in the attempt that process 0 told it, and accepts only processes
//!   of that attempt.
//! * [`connect`] returns a mesh only after process 0 has seen every process READY.
//! * A data socket carries nothing but the handshake before it is handed over: READY and GO use the
//!   heartbeats'.
//!
//! # Failure
//! Process 0 that dies before GO closes its sockets; the others notice, cut their own and join its
//! successor, whose attempt is a newer one. If one is lost between the first GO and the last,
//! process 0 fails; those that went see closed sockets, as after any loss. No path outlives
//! `connect_timeout`, but for name resolution by the system.
//!
//! # Source
//! One coordinator and one round of votes: two-phase commit without a log, since nothing here
//! outlives a crash.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NetworkError;
use super::handshake::{
    Applicant, HANDSHAKE_TIMEOUT, HandshakeError, Hello, Purpose, Refusal, Verdict, initiate,
};
use super::heartbeat::{GO, READY};
use super::links::{Heard, Links, Session};
use super::reception::{Reception, chain};
use super::secret::random_bytes;
use super::setup::{MeshSetup, as_index, check};
use crate::ids::Attempt;

/// How often a waiting process looks around.
const POLL: Duration = Duration::from_millis(2);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(200);
/// How long we wait for our own port: a killed predecessor may hold it for a moment.
const BIND_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections to all other processes.
#[derive(Debug)]
pub struct Mesh {
    /// The attempt that process 0 announced.
    pub attempt: Attempt,
    /// What process 0 announced with it.
    pub announcement: Vec<u8>,
    /// For timely: one a peer, `None` for ourselves; blocking, without delay, without timeouts.
    pub streams: Vec<Option<TcpStream>>,
    /// For [`Heartbeat`](super::Heartbeat): likewise.
    pub heartbeats: Vec<Option<TcpStream>>,
}

/// Cuts the data sockets of a mesh that timely holds.
#[derive(Debug)]
pub struct Breaker {
    streams: Vec<TcpStream>,
}

impl Mesh {
    /// Keeps a hand on the data sockets. To be taken before they are given to timely.
    ///
    /// # Errors
    /// [`NetworkError::System`] if the process has too many open files.
    pub fn breaker(&self) -> Result<Breaker, NetworkError> {
        let clones: io::Result<_> =
            self.streams.iter().flatten().map(TcpStream::try_clone).collect();
        Ok(Breaker { streams: clones.map_err(NetworkError::system("duplicating a socket"))? })
    }
}

impl Breaker {
    /// Closes all data sockets in both directions: timely's threads, which would wait for a silent
    /// peer for ever, see their end at once, and so does the peer.
    pub fn cut(&self) {
        for stream in &self.streams {
            // It may be closed already, which is what we want.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Connects this process with all others.
///
/// Process 0 passes what it announces, its claimed attempt and bytes that every process must agree
/// on (at most [`ANNOUNCEMENT_BYTES_MAX`](super::ANNOUNCEMENT_BYTES_MAX)); the others pass `None`
/// and learn both.
///
/// # Errors
/// [`NetworkError::Setup`] if the setup contradicts itself, [`NetworkError::Bind`] if our address
/// is taken, [`NetworkError::Unfit`] if a peer runs another job, program or number of processes,
/// [`NetworkError::Timeout`] if not all were there within `connect_timeout`,
/// [`NetworkError::PeerLost`] if one vanished at the last moment. On every error all connections
/// are closed.
pub fn connect(
    setup: MeshSetup,
    announce: Option<(Attempt, Vec<u8>)>,
) -> Result<Mesh, NetworkError> {
    let addresses = check(&setup, announce.as_ref())?;
    let started = Instant::now();
    let deadline = started + setup.connect_timeout;
    let member = Member { setup: &setup, addresses: &addresses, started, deadline };
    if let Some((attempt, announcement)) = announce {
        let mut links = Links::new(setup.processes);
        if setup.processes > 1 {
            member.lead(&mut links, attempt, &announcement)?;
        }
        return member.finish(links, attempt, announcement);
    }
    let listener = member.bind()?;
    loop {
        match member.follow(&listener) {
            Ok(mesh) => return Ok(mesh),
            Err(Setback::Final(error)) => return Err(error),
            Err(Setback::Again(lost)) => {
                tracing::warn!(lost, "lost a process before all were connected: connecting anew");
                thread::sleep(BACKOFF_MIN);
            }
        }
    }
}

/// What ends a try to join.
enum Setback {
    /// The named process was lost: begin anew.
    Again(usize),
    Final(NetworkError),
}

impl From<NetworkError> for Setback {
    fn from(error: NetworkError) -> Self {
        Self::Final(error)
    }
}

/// A socket, and what the process at its other end said: the attempt and its announcement.
type Joined = (TcpStream, Attempt, Vec<u8>);

/// One process while it looks for the others.
struct Member<'a> {
    setup: &'a MeshSetup,
    addresses: &'a [String],
    started: Instant,
    deadline: Instant,
}

impl Member<'_> {
    /// Process 0: takes in all others, and says when to go.
    fn lead(
        &self,
        links: &mut Links,
        attempt: Attempt,
        announcement: &[u8],
    ) -> Result<(), NetworkError> {
        let listener = self.bind()?;
        let mut reception = Reception::new(&listener, &self.setup.secret);
        let peers = 1..self.setup.processes;
        loop {
            while let Some(lost) = links.first_dead(peers.clone()) {
                tracing::warn!(process = lost, "lost a process before all were connected");
                links.cut(lost);
            }
            self.host(&mut reception, links, attempt, announcement)?;
            for peer in peers.clone() {
                match links.hear(peer, Duration::ZERO) {
                    Heard::Byte(READY) => links.set_ready(peer),
                    Heard::Nothing => {}
                    Heard::Byte(_) | Heard::Gone => links.cut(peer),
                }
            }
            let Some(unready) = links.first_unready(peers.clone()) else { break };
            let missing = links.first_missing(peers.clone());
            self.check_deadline(|| match missing {
                Some(peer) => format!("process {peer} has not connected; is it started?"),
                None => format!("process {unready} has not reached all others"),
            })?;
        }
        for peer in peers {
            links.tell(peer, GO).map_err(|_| NetworkError::PeerLost { process: peer })?;
        }
        Ok(())
    }

    /// Another process: one try to join, in one session.
    fn follow(&self, listener: &TcpListener) -> Result<Mesh, Setback> {
        let me = self.setup.process;
        let mut links = Links::new(self.setup.processes);
        let session: Session = random_bytes()?;
        let (attempt, announcement) = self.join(&mut links, 0, Purpose::Data, None, session)?;
        self.join(&mut links, 0, Purpose::Heartbeat, Some(attempt), session)?;
        for peer in 1..me {
            for purpose in [Purpose::Data, Purpose::Heartbeat] {
                self.join(&mut links, peer, purpose, Some(attempt), session)?;
            }
        }
        let higher = me + 1..self.setup.processes;
        if !higher.is_empty() {
            let mut reception = Reception::new(listener, &self.setup.secret);
            while let Some(missing) = links.first_missing(higher.clone()) {
                self.check_deadline(|| format!("process {missing} has not connected"))?;
                self.host(&mut reception, &mut links, attempt, &[])?;
                self.check_lower(&links)?;
                while let Some(lost) = links.first_dead(higher.clone()) {
                    links.cut(lost);
                }
            }
        }
        links.tell(0, READY).map_err(|_| Setback::Again(0))?;
        loop {
            match links.hear(0, POLL) {
                Heard::Byte(GO) => break,
                Heard::Byte(_) | Heard::Gone => return Err(Setback::Again(0)),
                Heard::Nothing => {}
            }
            if let Some(lost) = links.first_dead(0..self.setup.processes) {
                return Err(Setback::Again(lost));
            }
            self.check_deadline(|| "process 0 does not say that all are connected".into())?;
        }
        Ok(self.finish(links, attempt, announcement)?)
    }

    /// Takes in at most one process, if it fits.
    fn host(
        &self,
        reception: &mut Reception<'_>,
        links: &mut Links,
        attempt: Attempt,
        announcement: &[u8],
    ) -> Result<(), NetworkError> {
        let Some(applicant) = reception.next(POLL)? else { return Ok(()) };
        let Hello { process, purpose, session, .. } = applicant.hello;
        let verdict = match self.judge(&applicant, links, attempt) {
            Ok(()) => {
                let told = if purpose == Purpose::Data { announcement } else { &[] };
                Verdict::Accepted { attempt, announcement: told.to_vec() }
            }
            Err(refusal) => {
                tracing::warn!(process, %refusal, "refused a process");
                Verdict::Refused(refusal)
            }
        };
        let answered = applicant.answer(&self.setup.secret, &verdict).and_then(|stream| {
            if let Verdict::Accepted { .. } = verdict {
                let inserted = links.insert(process as usize, session, purpose, stream);
                inserted.map_err(HandshakeError::Io)?;
            }
            Ok(())
        });
        if let Err(error) = answered {
            tracing::warn!(process, error = chain(&error), "lost a process in its handshake");
        }
        Ok(())
    }

    /// Whether a process that holds the secret fits into this mesh, now.
    fn judge(
        &self,
        applicant: &Applicant,
        links: &mut Links,
        attempt: Attempt,
    ) -> Result<(), Refusal> {
        let hello = &applicant.hello;
        let ours = as_index(self.setup.process);
        let processes = as_index(self.setup.processes);
        if hello.job != self.setup.job {
            let ours = self.setup.job.clone();
            return Err(Refusal::Job { ours, theirs: hello.job.clone() });
        }
        if hello.processes != processes {
            return Err(Refusal::Processes { ours: processes, theirs: hello.processes });
        }
        if hello.peer != ours || !(ours + 1..processes).contains(&hello.process) {
            return Err(Refusal::Index { ours, theirs: hello.process, meant: hello.peer });
        }
        let learns = ours == 0 && hello.purpose == Purpose::Data;
        if hello.attempt.map_or(!learns, |theirs| theirs != attempt) {
            return Err(Refusal::Attempt { ours: attempt, theirs: hello.attempt });
        }
        if !links.admits(hello.process as usize, hello.session, hello.purpose) {
            return Err(Refusal::Duplicate { theirs: hello.process });
        }
        Ok(())
    }

    /// Connects to a lower process, as often as it takes. Returns its attempt and announcement.
    fn join(
        &self,
        links: &mut Links,
        peer: usize,
        purpose: Purpose,
        attempt: Option<Attempt>,
        session: Session,
    ) -> Result<(Attempt, Vec<u8>), Setback> {
        let mut backoff = BACKOFF_MIN;
        let (mut last, mut telling) = (String::new(), false);
        loop {
            self.check_lower(links)?;
            let error = match self.try_join(peer, purpose, attempt, session)? {
                Ok((stream, theirs, announcement)) => {
                    if attempt.is_some_and(|ours| ours != theirs) {
                        return Err(Setback::Again(peer));
                    }
                    links
                        .insert(peer, session, purpose, stream)
                        .map_err(NetworkError::system("preparing a socket"))?;
                    return Ok((theirs, announcement));
                }
                Err(error) if error.is_lasting() => {
                    let address = self.addresses[peer].clone();
                    return Err(Setback::Final(NetworkError::Unfit {
                        process: peer,
                        address,
                        source: error,
                    }));
                }
                Err(error) => error,
            };
            let address = &self.addresses[peer];
            let text = chain(&error);
            // A stranger on the port, or a secret that differs, is worth more words than
            // "connection refused", which is what the last of many tries often comes to.
            if error.is_telling() && !telling {
                tracing::warn!(process = peer, address, error = text, "cannot connect yet");
            }
            if error.is_telling() || !telling {
                telling = error.is_telling();
                last = text;
            }
            self.check_deadline(|| format!("process {peer} at {address}: {last}"))?;
            thread::sleep(backoff.min(self.left()));
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn try_join(
        &self,
        peer: usize,
        purpose: Purpose,
        attempt: Option<Attempt>,
        session: Session,
    ) -> Result<Result<Joined, HandshakeError>, NetworkError> {
        let hello = Hello {
            job: self.setup.job.clone(),
            processes: as_index(self.setup.processes),
            process: as_index(self.setup.process),
            peer: as_index(peer),
            purpose,
            attempt,
            session,
            nonce: random_bytes()?,
        };
        let deadline = self.deadline.min(Instant::now() + HANDSHAKE_TIMEOUT);
        let tried = dial(&self.addresses[peer], deadline).map_err(HandshakeError::Io);
        Ok(tried.and_then(|stream| {
            let (attempt, announcement) = initiate(&stream, &self.setup.secret, &hello, deadline)?;
            Ok((stream, attempt, announcement))
        }))
    }

    /// A closed connection to a lower process means that the attempt it stood for is over.
    fn check_lower(&self, links: &Links) -> Result<(), Setback> {
        links.first_dead(0..self.setup.process).map_or(Ok(()), |lost| Err(Setback::Again(lost)))
    }

    fn check_deadline(&self, missing: impl FnOnce() -> String) -> Result<(), NetworkError> {
        if self.left().is_zero() {
            let waited = self.started.elapsed();
            return Err(NetworkError::Timeout { waited, missing: missing() });
        }
        Ok(())
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Listens on our own address, and on no other.
    fn bind(&self) -> Result<TcpListener, NetworkError> {
        let give_up = self.deadline.min(self.started + BIND_TIMEOUT);
        let address = &self.addresses[self.setup.process];
        loop {
            let bound = TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            match bound {
                Ok(listener) => return Ok(listener),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                    thread::sleep(BACKOFF_MIN);
                }
                Err(source) => {
                    let (process, address) = (self.setup.process, address.clone());
                    return Err(NetworkError::Bind { process, address, source });
                }
            }
        }
    }

    fn finish(
        &self,
        links: Links,
        attempt: Attempt,
        announcement: Vec<u8>,
    ) -> Result<Mesh, NetworkError> {
        let [streams, heartbeats] = links.release()?;
        tracing::info!(
            %attempt,
            processes = self.setup.processes,
            took = ?self.started.elapsed(),
            "all processes are connected"
        );
        Ok(Mesh { attempt, announcement, streams, heartbeats })
    }
}

/// Connects to the first address behind `address` that answers.
fn dial(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for resolved in address.to_socket_addrs()? {
        match dial_one(&resolved, deadline) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn dial_one(address: &SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let stream = TcpStream::connect_timeout(address, left)?;
    // SUBTLE: 1. Nobody listens on a port of the ephemeral range. 2. We connect to it, and the
    // system picks that very port as ours. 3. TCP connects us to ourselves, and the port's owner
    // cannot bind it.
    if stream.local_addr()? == *address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
