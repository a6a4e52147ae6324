//! The listener while the mesh is being made: takes whoever comes, and passes on whoever proves the
//! secret.
//!
//! Each handshake runs on a short-lived thread of its own with a deadline, so that nobody who
//! connects and is silent, slow or talks nonsense holds up anybody else. At most [`HALF_OPEN_MAX`]
//! are under way: one more cuts the oldest, which an honest peer, who needs milliseconds, hardly
//! ever is.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NetworkError;
use super::handshake::{Applicant, HANDSHAKE_TIMEOUT, HandshakeError, respond};
use super::secret::Secret;

/// Handshakes that may be under way at once.
pub(super) const HALF_OPEN_MAX: usize = 64;

type Outcome = (u64, Result<Applicant, HandshakeError>);

/// Dropping it cuts the handshakes under way; the listener is the caller's.
#[derive(Debug)]
pub(super) struct Reception<'a> {
    listener: &'a TcpListener,
    secret: Arc<Secret>,
    half_open: VecDeque<(u64, SocketAddr, TcpStream)>,
    next_id: u64,
    sender: Sender<Outcome>,
    receiver: Receiver<Outcome>,
}

impl<'a> Reception<'a> {
    /// `listener` must not block.
    pub fn new(listener: &'a TcpListener, secret: &Secret) -> Self {
        let (sender, receiver) = channel();
        let secret = Arc::new(secret.clone());
        Self { listener, secret, half_open: VecDeque::new(), next_id: 0, sender, receiver }
    }

    /// Takes everybody who waits, then waits at most `wait` for somebody who has proved the secret.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Applicant>, NetworkError> {
        self.take_all().map_err(NetworkError::system("accepting a connection"))?;
        let Ok((id, outcome)) = self.receiver.recv_timeout(wait) else { return Ok(None) };
        let place = self.half_open.iter().position(|(held, ..)| *held == id);
        let from = place.and_then(|place| self.half_open.remove(place)).map(|(_, from, _)| from);
        match outcome {
            Ok(applicant) => Ok(Some(applicant)),
            Err(error) => {
                tracing::warn!(?from, error = chain(&error), "turned a connection away");
                Ok(None)
            }
        }
    }

    fn take_all(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => self.greet(stream, from)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The peer gave up before we came to it, or a signal came.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn greet(&mut self, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        if self.half_open.len() >= HALF_OPEN_MAX
            && let Some((_, oldest, stream)) = self.half_open.pop_front()
        {
            tracing::warn!(from = %oldest, "too many handshakes at once: cut the oldest");
            let _ = stream.shutdown(Shutdown::Both);
        }
        let id = self.next_id;
        self.next_id += 1;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        self.half_open.push_back((id, from, stream.try_clone()?));
        let (secret, sender) = (Arc::clone(&self.secret), self.sender.clone());
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let run = move || {
            let outcome = respond(stream, &secret, deadline);
            // Nobody listens once the mesh stands or has failed; then the applicant's socket is
            // closed here.
            let _ = sender.send((id, outcome));
        };
        thread::Builder::new().name("hw:handshake".into()).spawn(run).map(drop)
    }
}

impl Drop for Reception<'_> {
    fn drop(&mut self) {
        for (.., stream) in &self.half_open {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// An error and all that caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
