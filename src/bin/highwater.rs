//! The `highwater` tool.

fn main() {}
