//! The threads on which a store's requests travel. Callers wait; what they wait for runs here.

use std::io;
use std::sync::mpsc::sync_channel;

use tokio::runtime::{Builder, Handle, Runtime};

/// Two threads, so that requests go on while one of them computes a checksum.
const THREADS: usize = 2;

/// The runtime of one store. Its tasks end with it.
#[derive(Debug)]
pub(super) struct Lane {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Lane {
    pub(super) fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("hw-objects")
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Runs a task and waits for what it comes to.
    pub(super) fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, answer) = sync_channel(1);
        self.handle.spawn(async move {
            // Nobody waits any more if the caller's thread is gone.
            let _ = sender.send(task.await);
        });
        answer.recv().map_err(|_| io::Error::other("a request to the object store ended early"))
    }

    /// Starts a task that nobody waits for here.
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(self.handle.spawn(task))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting could block for as long as a request may take, and nobody is left to hear of it.
            runtime.shutdown_background();
        }
    }
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub(super) struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
