//! Notices a peer process that died or fell silent.
//!
//! Heartbeats have sockets and threads of their own. The design first had them ride on the workers'
//! control channels; but there they would come from the workers' threads, and a worker that spends
//! ten seconds in a user's function would look like a process that is gone. Here silence means that
//! the process is stopped, its machine is gone or the network is cut; a slow worker is none of
//! these.
//!
//! # States of a peer
//! | state | event                          | next    | effect   |
//! |-------|--------------------------------|---------|----------|
//! | alive | a byte                         | alive   |          |
//! | alive | goodbye                        | parted  |          |
//! | alive | the connection ends or fails   | lost    | `on_lost`|
//! | alive | `timeout` passes without a byte| lost    | `on_lost`|
//! | alive | we stop                        | parted  |          |
//!
//! # Invariants
//! * `on_lost` is called at most once for each peer, and never after a goodbye or after
//!   [`Heartbeat::stop`] began.
//! * A process sends a byte every `interval`, whatever its workers do.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::error::NetworkError;
use super::reception::chain;
use crate::config::HeartbeatConfig;

/// A sign of life.
const BEAT: u8 = 1;
/// The sender ends cleanly: what follows is no loss.
const GOODBYE: u8 = 2;
/// To process 0, before the mesh stands: connected to all.
pub(super) const READY: u8 = 3;
/// From process 0: so is everybody.
pub(super) const GO: u8 = 4;

/// A peer process that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLost {
    /// Its index.
    pub process: usize,
    /// How it was noticed.
    pub why: String,
}

/// Watches all peers until it is stopped or dropped.
pub struct Heartbeat {
    stopping: Arc<AtomicBool>,
    wake: SyncSender<()>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heartbeat").field("peers", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Heartbeat {
    /// Starts to watch: one thread that sends, and one for each peer that listens.
    ///
    /// `streams` is indexed by process, with `None` for ourselves. `on_lost` is called on one of
    /// our threads and should only pass the news on.
    ///
    /// # Errors
    /// [`NetworkError::System`] if sockets cannot be set up or threads not started. Then nothing
    /// runs.
    pub fn start(
        streams: Vec<Option<TcpStream>>,
        config: HeartbeatConfig,
        on_lost: Arc<dyn Fn(PeerLost) + Send + Sync>,
    ) -> Result<Self, NetworkError> {
        let mut writers = Vec::new();
        let mut listeners = Vec::new();
        let prepare = || -> io::Result<()> {
            for (process, stream) in streams.into_iter().enumerate() {
                let Some(stream) = stream else { continue };
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(config.timeout))?;
                // A peer that reads nothing must not hold up the beats of the others.
                stream.set_write_timeout(Some(config.interval))?;
                writers.push(stream.try_clone()?);
                listeners.push((process, stream));
            }
            Ok(())
        };
        prepare().map_err(NetworkError::system("preparing a socket"))?;
        let (wake, woken) = sync_channel::<()>(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut heartbeat =
            Self { stopping, wake, streams: writers, threads: Vec::with_capacity(8) };
        // On an error from here on, dropping `heartbeat` ends what was started.
        for (process, stream) in listeners {
            let (on_lost, stopping) = (Arc::clone(&on_lost), Arc::clone(&heartbeat.stopping));
            heartbeat.spawn(format!("hw:pulse-{process}"), move || {
                if let Some(why) = listen(&stream)
                    && !stopping.load(Ordering::SeqCst)
                {
                    on_lost(PeerLost { process, why });
                }
            })?;
        }
        let writers: io::Result<Vec<_>> =
            heartbeat.streams.iter().map(TcpStream::try_clone).collect();
        let writers = writers.map_err(NetworkError::system("duplicating a socket"))?;
        heartbeat.spawn("hw:pulse".into(), move || {
            loop {
                for mut stream in &writers {
                    // A failure is the listener's to notice; a full buffer holds beats enough.
                    let _ = stream.write(&[BEAT]);
                }
                if woken.recv_timeout(config.interval) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        })?;
        Ok(heartbeat)
    }

    /// Ends cleanly: says goodbye, so that no peer reports a loss, and waits for our threads.
    /// Dropping does the same.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), NetworkError> {
        let thread = thread::Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(NetworkError::system("starting a thread"))?);
        Ok(())
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // It may have ended; a full channel has woken it already.
        let _ = self.wake.try_send(());
        for mut stream in &self.streams {
            // The peer may be gone, which is not ours to report any more.
            let _ = stream.write(&[GOODBYE]);
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // `on_lost` may have dropped us on a thread of our own.
            if thread.thread().id() != thread::current().id() {
                // It can only have panicked in `on_lost`, which the panic hook has reported.
                let _ = thread.join();
            }
        }
    }
}

/// Listens until the peer is gone: why it is lost, or nothing after its goodbye.
fn listen(mut stream: &TcpStream) -> Option<String> {
    let mut heard_at = Instant::now();
    let mut bytes = [0; 64];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Some("its connection closed".into()),
            Ok(n) if bytes[..n].contains(&GOODBYE) => return None,
            Ok(_) => heard_at = Instant::now(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Some(format!("silent for {:.1}s", heard_at.elapsed().as_secs_f64()));
            }
            Err(e) => return Some(format!("its connection failed: {}", chain(&e))),
        }
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
