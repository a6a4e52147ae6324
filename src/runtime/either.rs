//! One of two things.

use serde::{Deserialize, Serialize};

/// One of two things: what [`Stream::split`](crate::job::Stream::split) sends apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}
