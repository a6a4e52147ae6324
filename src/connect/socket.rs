//! A source of the lines that a TCP server sends. **At-most-once.**
//!
//! A socket cannot be read again: lines that were taken from it and are in no checkpoint when the
//! job fails are lost. A restored split connects again and starts with what the server sends then.
//!
//! A thread of its own connects and reads, and hands lines over in chunks through a bounded
//! channel: when the job is slow the channel fills up, the thread stops reading, and TCP slows the
//! server down. There is one split. The end of the stream ends the source; a lost connection fails
//! the job, which connects again when it is restarted. Within a run it is never connected again.

use std::fmt;
use std::io::Read as _;
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use serde::{Deserialize, Serialize};

use super::line::{self, Encoding};
use super::{ConnectError, ReadStatus, Source, SplitReader, Waker};

/// Units: bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// How many chunks of lines wait for the worker at most.
const CHUNKS_MAX: usize = 16;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Without a waker the worker looks again after this time.
const POLL: Duration = Duration::from_millis(20);

/// With a waker it need not look; but a wake-up that is lost should not be the end.
const POLL_WITH_WAKER: Duration = Duration::from_secs(1);

const LINE_BYTES_MAX: u64 = 1 << 20;

/// A source of the lines, without their ends (`\n` or `\r\n`), that a TCP server sends.
/// At-most-once: see the module.
#[derive(Clone, Debug)]
pub struct SocketLines {
    address: String,
    options: Options,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    encoding: Encoding,
    line_bytes_max: u64,
}

impl SocketLines {
    /// Connects to `address`, which is `host:port`, when the job runs.
    #[must_use]
    pub fn connect(address: impl Into<String>) -> Self {
        let options = Options { encoding: Encoding::Strict, line_bytes_max: LINE_BYTES_MAX };
        Self { address: address.into(), options }
    }

    /// Puts U+FFFD in the place of bytes that are not UTF-8. Without this they are an error.
    #[must_use]
    pub fn lossy(mut self) -> Self {
        self.options.encoding = Encoding::Lossy;
        self
    }

    /// Sets the length of the longest line that is accepted, without its end: a longer one is an
    /// error. Default: 1 MiB.
    #[must_use]
    pub fn line_bytes_max(mut self, bytes: u64) -> Self {
        self.options.line_bytes_max = bytes;
        self
    }
}

/// The split of a [`SocketLines`]. It has no position: a socket cannot be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSplit {
    /// Whether the server has ended the stream.
    finished: bool,
}

impl Source for SocketLines {
    type Record = String;
    type Split = SocketSplit;
    type Reader = SocketReader;

    fn splits(&mut self, _: usize) -> Result<Vec<SocketSplit>, ConnectError> {
        Ok(vec![SocketSplit { finished: false }])
    }

    fn open(&mut self, split: SocketSplit) -> Result<SocketReader, ConnectError> {
        let (sender, chunks) = bounded(CHUNKS_MAX);
        let shared = Arc::new(Mutex::new(Shared::default()));
        if !split.finished {
            let Self { address, options } = self.clone();
            let thread = Thread { address, options, sender, shared: Arc::clone(&shared) };
            std::thread::Builder::new()
                .name("socket-lines".to_owned())
                .spawn(move || thread.run())
                .map_err(|error| ConnectError::caused("the reading thread cannot start", error))?;
        }
        let address = self.address.clone();
        Ok(SocketReader { address, split, chunks, shared, lines: Vec::new().into_iter() })
    }
}

/// What the thread sends to the worker.
enum Chunk {
    Lines(Vec<String>),
    End,
    Failed(ConnectError),
}

/// What the worker tells the thread.
#[derive(Default)]
struct Shared {
    waker: Option<Waker>,
    stream: Option<TcpStream>,
    /// The reader is gone.
    stopped: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Thread {
    address: String,
    options: Options,
    sender: Sender<Chunk>,
    shared: Arc<Mutex<Shared>>,
}

impl Thread {
    fn run(self) {
        let last = match self.read() {
            Ok(()) => Chunk::End,
            Err(error) => Chunk::Failed(error),
        };
        self.send(last);
    }

    /// Hands a chunk over, waiting while the channel is full. `false` if the reader is gone.
    fn send(&self, chunk: Chunk) -> bool {
        let taken = self.sender.send(chunk).is_ok();
        let waker = lock(&self.shared).waker.clone();
        if let Some(waker) = waker {
            waker();
        }
        taken
    }

    fn connect(&self) -> Result<TcpStream, ConnectError> {
        let failed =
            |error| ConnectError::caused(format!("{} cannot be connected to", self.address), error);
        let mut last = std::io::Error::other("the name has no address");
        for address in self.address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Reads until the stream ends or the reader is gone.
    fn read(&self) -> Result<(), ConnectError> {
        let failed =
            |error| ConnectError::caused(format!("{} cannot be read", self.address), error);
        let mut stream = self.connect()?;
        {
            let mut shared = lock(&self.shared);
            if shared.stopped {
                return Ok(());
            }
            shared.stream = Some(stream.try_clone().map_err(failed)?);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut open = OpenLine { bytes: Vec::new(), start: 0 };
        loop {
            let read = match stream.read(&mut chunk) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            let mut lines = Vec::new();
            if read == 0 {
                if !open.bytes.is_empty() {
                    lines.push(open.finish(&self.address, self.options)?);
                }
            } else {
                open.take(&chunk[..read], &mut lines, &self.address, self.options)?;
            }
            if !lines.is_empty() && !self.send(Chunk::Lines(lines)) {
                return Ok(());
            }
            if read == 0 {
                return Ok(());
            }
        }
    }
}

/// The line whose end has not come yet.
struct OpenLine {
    bytes: Vec<u8>,
    /// Its offset in the stream.
    start: u64,
}

impl OpenLine {
    /// Adds what came, and gives out the lines that it completes.
    fn take(
        &mut self,
        chunk: &[u8],
        lines: &mut Vec<String>,
        address: &str,
        options: Options,
    ) -> Result<(), ConnectError> {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.bytes.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                lines.push(self.finish(address, options)?);
            } else if self.bytes.len() as u64 > options.line_bytes_max.saturating_add(1) {
                return Err(line::too_long(address, self.start, options.line_bytes_max));
            }
        }
        Ok(())
    }

    fn finish(&mut self, address: &str, options: Options) -> Result<String, ConnectError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        let start = self.start;
        self.start += bytes.len() as u64;
        line::strip_end(&mut bytes);
        if bytes.len() as u64 > options.line_bytes_max {
            return Err(line::too_long(address, start, options.line_bytes_max));
        }
        line::decode(bytes, options.encoding, address, start)
    }
}

/// Reads the split of a [`SocketLines`]. Dropping it closes the connection.
pub struct SocketReader {
    address: String,
    split: SocketSplit,
    chunks: Receiver<Chunk>,
    shared: Arc<Mutex<Shared>>,
    /// The rest of the chunk that was taken last.
    lines: std::vec::IntoIter<String>,
}

impl fmt::Debug for SocketReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketReader")
            .field("address", &self.address)
            .field("split", &self.split)
            .finish_non_exhaustive()
    }
}

impl SplitReader for SocketReader {
    type Record = String;
    type Split = SocketSplit;

    fn read(
        &mut self,
        batch: &mut Vec<String>,
        records_max: usize,
    ) -> Result<ReadStatus, ConnectError> {
        let mut left = records_max;
        while !self.split.finished {
            let before = batch.len();
            batch.extend(self.lines.by_ref().take(left));
            left -= batch.len() - before;
            if left == 0 {
                return Ok(ReadStatus::More);
            }
            match self.chunks.try_recv() {
                Ok(Chunk::Lines(lines)) => self.lines = lines.into_iter(),
                Ok(Chunk::End) => self.split.finished = true,
                Ok(Chunk::Failed(error)) => return Err(error),
                Err(TryRecvError::Empty) => {
                    let waker = lock(&self.shared).waker.is_some();
                    return Ok(ReadStatus::Wait(if waker { POLL_WITH_WAKER } else { POLL }));
                }
                Err(TryRecvError::Disconnected) => {
                    return Err(ConnectError::new(format!(
                        "the thread that reads {} has died",
                        self.address
                    )));
                }
            }
        }
        Ok(ReadStatus::Finished)
    }

    fn split(&self) -> SocketSplit {
        self.split
    }

    fn set_waker(&mut self, waker: Waker) {
        lock(&self.shared).waker = Some(Arc::clone(&waker));
        // What came before this had no one to tell.
        waker();
    }
}

impl Drop for SocketReader {
    /// Ends the thread, wherever it waits: in a read by closing the stream, in a send by dropping
    /// the channel.
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.stopped = true;
        if let Some(stream) = &shared.stream {
            // It fails if the other side has closed the connection: then there is nothing to do.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, mpsc};

    use super::{CHUNK_BYTES, CHUNKS_MAX, SocketLines, SocketReader};
    use crate::connect::{ConnectError, ReadStatus, Source, SplitReader};

    /// A reader that is connected, the other end, and what the waker tells.
    fn connected(
        configure: impl FnOnce(SocketLines) -> SocketLines,
    ) -> (SocketReader, TcpStream, mpsc::Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut source = configure(SocketLines::connect(address));
        let split = source.splits(4).unwrap().remove(0);
        let mut reader = source.open(split).unwrap();
        let (wake, woken) = mpsc::channel();
        reader.set_waker(Arc::new(move || wake.send(()).unwrap_or(())));
        (reader, listener.accept().unwrap().0, woken)
    }

    /// Reads until there are so many lines, or no more, waiting for the waker in between.
    fn read(
        reader: &mut SocketReader,
        woken: &mpsc::Receiver<()>,
        lines: usize,
    ) -> Result<Vec<String>, ConnectError> {
        let mut batch = Vec::new();
        while batch.len() < lines {
            let left = lines - batch.len();
            match reader.read(&mut batch, left.min(2))? {
                ReadStatus::More => {}
                ReadStatus::Wait(_) => woken.recv().unwrap(),
                ReadStatus::Finished => break,
            }
        }
        Ok(batch)
    }

    #[test]
    fn lines_come_as_they_are_sent_and_the_end_of_the_stream_is_the_end() {
        let (mut reader, mut server, woken) = connected(|source| source);
        server.write_all(b"one\r\ntwo\nth").unwrap();
        assert_eq!(read(&mut reader, &woken, 2).unwrap(), ["one", "two"]);
        server.write_all(b"ree\n\nfour").unwrap();
        assert_eq!(read(&mut reader, &woken, 2).unwrap(), ["three", ""]);
        drop(server);
        assert_eq!(read(&mut reader, &woken, 9).unwrap(), ["four"]);
        assert!(reader.split().finished);
        assert_eq!(reader.read(&mut Vec::new(), 1).unwrap(), ReadStatus::Finished);
        let mut again = SocketLines::connect("nowhere").open(reader.split()).unwrap();
        assert_eq!(again.read(&mut Vec::new(), 1).unwrap(), ReadStatus::Finished);
    }

    #[test]
    fn a_slow_job_stops_the_server_and_loses_nothing() {
        let (mut reader, mut server, woken) = connected(|source| source);
        let line = format!("{}\n", "x".repeat(1_023));
        let count = 4 * CHUNKS_MAX * CHUNK_BYTES / line.len();
        let writer = std::thread::spawn(move || {
            for _ in 0..count {
                server.write_all(line.as_bytes()).unwrap();
            }
        });
        let lines = read(&mut reader, &woken, usize::MAX).unwrap();
        assert_eq!(lines.len(), count);
        assert!(lines.iter().all(|line| line.len() == 1_023));
        writer.join().unwrap();
    }

    #[test]
    fn dropping_the_reader_closes_the_connection() {
        let (reader, mut server, _woken) = connected(|source| source);
        // The server waits here until the connection is closed.
        drop(reader);
        assert_eq!(server.read(&mut [0; 8]).unwrap_or(0), 0);
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_that_names_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut source = SocketLines::connect(&address);
        let split = source.splits(1).unwrap().remove(0);
        let mut reader = source.open(split).unwrap();
        let (wake, woken) = mpsc::channel();
        reader.set_waker(Arc::new(move || wake.send(()).unwrap_or(())));
        let error = read(&mut reader, &woken, 1).unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
    }

    #[test]
    fn bad_and_long_lines_are_refused_by_offset() {
        let (mut reader, mut server, woken) = connected(|source| source);
        server.write_all(b"ab\n\xFF\n").unwrap();
        let error = read(&mut reader, &woken, 2).unwrap_err();
        assert!(error.to_string().contains("not UTF-8 at byte 3"), "{error}");

        let (mut reader, mut server, woken) = connected(SocketLines::lossy);
        server.write_all(b"ab\n\xFF\n").unwrap();
        assert_eq!(read(&mut reader, &woken, 2).unwrap(), ["ab", "\u{FFFD}"]);

        let (mut reader, mut server, woken) = connected(|source| source.line_bytes_max(4));
        server.write_all(b"1234\r\n12345").unwrap();
        assert_eq!(read(&mut reader, &woken, 1).unwrap_or_default(), ["1234"]);
        server.write_all(b"6").unwrap();
        let error = read(&mut reader, &woken, 1).unwrap_err();
        assert!(error.to_string().contains("the line at byte 6"), "{error}");
    }
}
