//! From the panic of a user's function to output again and to having caught up, by size of the state and by where its bytes
//! come from: the checkpoint directory, or the copy on the local disk.

use serde_json::json;

use crate::Measured;
use crate::args::{Args, Workload};

/// Numbers of keys, unless one is given.
const KEYS: [u64; 2] = [1_000_000, 10_000_000];

/// Runs `recovery` of each size and source in a process of its own.
pub fn run(args: &Args) -> Measured {
    let sizes = args.keys.map_or_else(|| KEYS.to_vec(), |keys| vec![keys]);
    let mut runs = Vec::new();
    for keys in sizes {
        for local_copy in [false, true] {
            let workload = Some(Workload::Recovery);
            let own = Args { workload, keys: Some(keys), local_copy, ..args.clone() };
            let report = own.run_in_process()?;
            runs.push(json!({
                "keys": keys,
                "source": if local_copy { "local copy" } else { "checkpoint directory" },
                "state_backend": args.state_backend,
                "first_output_ms": report["first_output_ms"],
                "every_subtask_ms": report["every_subtask_ms"],
                "caught_up_ms": report["caught_up_ms"],
                "peak_rss_bytes": report["peak_rss_bytes"],
            }));
        }
    }
    Ok(json!({"workload": "restore", "runs": runs}))
}
