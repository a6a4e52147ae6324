//! The connections that a process holds while the mesh is being made.

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::error::NetworkError;
use super::handshake::Purpose;

/// Identifies one try of one process to join the mesh.
pub(super) type Session = [u8; 16];

/// What is read from the heartbeat socket of a peer that has said nothing yet, or has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Byte(u8),
    Gone,
}

/// The two connections to one peer.
#[derive(Debug, Default)]
struct Link {
    session: Option<Session>,
    data: Option<TcpStream>,
    heartbeat: Option<TcpStream>,
    ready: bool,
}

/// The connections to all peers, by index. Dropping it cuts them, so that the peers notice at once.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Link>,
}

impl Link {
    fn slot(&mut self, purpose: Purpose) -> &mut Option<TcpStream> {
        match purpose {
            Purpose::Data => &mut self.data,
            Purpose::Heartbeat => &mut self.heartbeat,
        }
    }

    fn is_whole(&self) -> bool {
        self.data.is_some() && self.heartbeat.is_some()
    }

    /// Whether the peer closed one of the connections. A link without any is not dead but empty.
    fn is_dead(&self) -> bool {
        [&self.data, &self.heartbeat].into_iter().flatten().any(is_closed)
    }

    fn cut(&mut self) {
        for stream in [self.data.take(), self.heartbeat.take()].into_iter().flatten() {
            // The peer may be gone already: then there is nothing to tell.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.session = None;
        self.ready = false;
    }
}

impl Links {
    /// No connection to any of `processes` peers.
    pub fn new(processes: usize) -> Self {
        Self { links: (0..processes).map(|_| Link::default()).collect() }
    }

    /// Whether `peer` may connect for `purpose` in `session`. An older session of it whose
    /// connections are closed makes way; one that lives does not.
    pub fn admits(&mut self, peer: usize, session: Session, purpose: Purpose) -> bool {
        let link = &mut self.links[peer];
        if link.is_dead() {
            link.cut();
        }
        match link.session {
            None => true,
            Some(held) => held == session && link.slot(purpose).is_none(),
        }
    }

    /// Keeps an authenticated connection. It does not block from now on.
    pub fn insert(
        &mut self,
        peer: usize,
        session: Session,
        purpose: Purpose,
        stream: TcpStream,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let link = &mut self.links[peer];
        link.session = Some(session);
        let displaced = link.slot(purpose).replace(stream);
        assert!(displaced.is_none(), "a connection is admitted before it is inserted");
        Ok(())
    }

    /// The first peer in `peers` whose connections are not both there.
    pub fn first_missing(&self, mut peers: std::ops::Range<usize>) -> Option<usize> {
        peers.find(|peer| !self.links[*peer].is_whole())
    }

    /// The first peer in `peers` that has not said that it is ready.
    pub fn first_unready(&self, mut peers: std::ops::Range<usize>) -> Option<usize> {
        peers.find(|peer| !self.links[*peer].ready)
    }

    /// The first peer in `peers` that closed a connection.
    pub fn first_dead(&self, mut peers: std::ops::Range<usize>) -> Option<usize> {
        peers.find(|peer| self.links[*peer].is_dead())
    }

    /// Forgets a peer, so that it may connect again.
    pub fn cut(&mut self, peer: usize) {
        self.links[peer].cut();
    }

    /// Notes that a peer has said that it is ready.
    pub fn set_ready(&mut self, peer: usize) {
        self.links[peer].ready = true;
    }

    /// Reads one byte from the heartbeat socket of `peer`, waiting at most `wait`.
    pub fn hear(&self, peer: usize, wait: Duration) -> Heard {
        let Some(stream) = &self.links[peer].heartbeat else { return Heard::Nothing };
        let mut reader: &TcpStream = stream;
        let mut byte = [0];
        let mut read = || {
            if wait.is_zero() {
                return reader.read(&mut byte);
            }
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(wait))?;
            let read = reader.read(&mut byte);
            stream.set_nonblocking(true)?;
            read
        };
        match read() {
            Ok(0) => Heard::Gone,
            Ok(_) => Heard::Byte(byte[0]),
            Err(e) if is_silence(&e) => Heard::Nothing,
            Err(_) => Heard::Gone,
        }
    }

    /// Sends one byte on the heartbeat socket of `peer`.
    pub fn tell(&self, peer: usize, byte: u8) -> io::Result<()> {
        let stream = self.links[peer].heartbeat.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut writer: &TcpStream = stream;
        io::Write::write_all(&mut writer, &[byte])
    }

    /// Hands over all connections: data and heartbeat, blocking, without timeouts.
    pub fn release(mut self) -> Result<[Vec<Option<TcpStream>>; 2], NetworkError> {
        let mut streams = [Vec::new(), Vec::new()];
        for link in &mut self.links {
            for stream in [&link.data, &link.heartbeat].into_iter().flatten() {
                settle(stream).map_err(NetworkError::system("preparing a socket"))?;
            }
            streams[0].push(link.data.take());
            streams[1].push(link.heartbeat.take());
        }
        Ok(streams)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.links.iter_mut().for_each(Link::cut);
    }
}

fn settle(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)
}

/// Looks without reading: what lies in a data socket is timely's.
fn is_closed(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(n) => n == 0,
        Err(e) => !is_silence(&e),
    }
}

fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
