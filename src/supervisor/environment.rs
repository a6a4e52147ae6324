//! The environment by which a supervisor tells a process who it is.

/// Number of processes.
pub const PROCESSES: &str = "HIGHWATER_PROCESSES";
/// Index of this process, from 0.
pub const PROCESS: &str = "HIGHWATER_PROCESS";
/// Worker threads in each process.
pub const WORKERS: &str = "HIGHWATER_WORKERS";
/// Path of a file with one `host:port` a line, in the order of the processes.
pub const HOSTFILE: &str = "HIGHWATER_HOSTFILE";
/// Path of the file that holds the shared secret.
pub const SECRET_FILE: &str = "HIGHWATER_SECRET_FILE";
/// Process id of the supervisor.
pub const SUPERVISED: &str = "HIGHWATER_SUPERVISED";
