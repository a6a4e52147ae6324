//! Sockets between the processes of one job.
//!
//! Timely takes sockets that are already connected. Here they are connected, and here the processes
//! make sure of each other: by a shared [`Secret`], a mutual handshake, and a mesh that stands
//! either for all processes or for none ([`connect`]). Once it stands, a [`Heartbeat`] on sockets
//! of its own notices peers that fell silent.
//!
//! The handshake authenticates the two ends of a connection when it is made. It neither encrypts
//! nor authenticates the bytes that follow: whoever can change packets on the way can change those.
//! Beyond loopback, run the mesh inside a network that you trust.

mod error;
mod handshake;
mod heartbeat;
mod links;
mod mesh;
mod reception;
mod secret;
mod setup;
#[cfg(test)]
pub(crate) mod testing;

pub use error::NetworkError;
pub use handshake::{FRAME_BYTES_MAX, HandshakeError, PROTOCOL_VERSION, Refusal};
pub use heartbeat::{Heartbeat, PeerLost};
pub use mesh::{Breaker, Mesh, connect};
pub use secret::{SECRET_BYTES, Secret};
pub use setup::{ANNOUNCEMENT_BYTES_MAX, DEFAULT_PORT, MeshSetup, check_exposure};
