//! The keyed count on bare timely dataflow, as a user of timely would write it: no state that survives, no
//! checkpoints, no flow control.

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::rc::Rc;

use rustc_hash::FxHashMap;
use timely::communication::Config as Communication;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Scope;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::operator::{Operator, source};
use timely::scheduling::Activator;
use timely::{Config, WorkerConfig};

use crate::Measured;
use crate::args::Args;
use crate::counting;
use crate::report::{self, Stopwatch};

/// Records that a source makes in one activation: as good as any of 1,024 to 65,536.
const SOURCE_RECORDS: u64 = 8_192;

/// Batches that a source may be ahead of the slowest worker's results. Without a bound, a worker that loses its
/// processor for a moment finds a queue of hundreds of megabytes, and runs out of the cache from then on.
const WINDOW_BATCHES: u64 = 16;

/// What tells a source of what its results have reached: the batch that is not yet done on some worker.
#[derive(Default)]
struct Window {
    done: Cell<u64>,
    source: RefCell<Option<Activator>>,
}

type Built<T> = CapacityContainerBuilder<Vec<T>>;

/// Runs it, in one process or in several, and checks what comes out.
pub fn run(args: &Args) -> Measured {
    if let Some(directory) = &args.report_dir {
        let communication = Communication::Cluster {
            threads: args.workers(),
            process: args.process,
            addresses: args.addresses.clone(),
            report: false,
            zerocopy: false,
        };
        let report = run_here(args, communication)?;
        report::leave(directory, args.process, &report)?;
        Ok(serde_json::Value::Null)
    } else if args.processes > 1 {
        counting::checked(run_processes(args)?)
    } else {
        counting::checked(run_here(args, Communication::Process(args.workers()))?)
    }
}

fn run_here(args: &Args, communication: Communication) -> Measured {
    let (records, keys, load) = (args.keyed_count_records(), args.keys(), args.load.unwrap_or(0));
    let watch = Stopwatch::start();
    let config = Config { communication, worker: WorkerConfig::default() };
    let guards = timely::execute(config, move |worker| {
        let totals = Rc::new(Cell::new((0, 0)));
        let (index, peers) = (worker.index() as u64, worker.peers() as u64);
        worker.dataflow::<u64, _, _>(|scope| {
            let window = Rc::new(Window::default());
            let event = move |i| counting::event(i, keys, load);
            let events = events(scope, records, (index, peers), &window, event);
            digest(count(events), window, Rc::clone(&totals));
        });
        while worker.has_dataflows() {
            worker.step_or_park(None);
        }
        totals.get()
    });
    let guards = guards.map_err(|error| format!("timely: {error}"))?;
    let mut totals = (0, 0_u64);
    for worker in guards.join() {
        let (results, digest) = worker.map_err(|error| format!("timely: {error}"))?;
        totals = (totals.0 + results, totals.1.wrapping_add(digest));
    }
    let checkpoints = report::checkpoints(&highwater::job::Checkpoints::default());
    Ok(watch.report(args, totals.0, totals.1, checkpoints))
}

fn events<'scope>(
    scope: Scope<'scope, u64>,
    records: u64,
    (index, peers): (u64, u64),
    window: &Rc<Window>,
    event: impl Fn(u64) -> (u64, u64) + 'static,
) -> Stream<'scope, u64, Vec<(u64, u64)>> {
    source::<_, Built<(u64, u64)>, _, _>(scope, "events", |capability, info| {
        let activator = scope.activator_for(Rc::clone(&info.address));
        let window = Rc::clone(window);
        *window.source.borrow_mut() = Some(scope.activator_for(info.address));
        let mut capability = Some(capability);
        let mut next = index;
        move |output| {
            let Some(time) = &mut capability else { return };
            if *time.time() >= window.done.get() + WINDOW_BATCHES {
                return; // The sink activates us.
            }
            let end = records.min(next + SOURCE_RECORDS * peers);
            let mut session = output.session(&*time);
            while next < end {
                session.give(event(next));
                next += peers;
            }
            drop(session);
            if next < records {
                let batch = *time.time() + 1;
                time.downgrade(&batch);
                activator.activate();
            } else {
                capability = None;
            }
        }
    })
}

fn count<'scope>(
    events: Stream<'scope, u64, Vec<(u64, u64)>>,
) -> Stream<'scope, u64, Vec<(u64, u64, u64)>> {
    let by_key = Exchange::new(|event: &(u64, u64)| event.0);
    events.unary::<Built<(u64, u64, u64)>, _, _, _>(by_key, "count", |_, _| {
        let mut states: FxHashMap<u64, (u64, u64)> = FxHashMap::default();
        move |input, output| {
            input.for_each_time(|time, batches| {
                let mut session = output.session(&time);
                for (key, value) in batches.flat_map(|batch| batch.drain(..)) {
                    let state = states.entry(key).or_default();
                    counting::count(state, value);
                    session.give((key, state.0, state.1));
                }
            });
        }
    })
}

fn digest(
    results: Stream<'_, u64, Vec<(u64, u64, u64)>>,
    window: Rc<Window>,
    totals: Rc<Cell<(u64, u64)>>,
) {
    results.sink(Pipeline, "digest", move |(input, frontier)| {
        if let Some(done) = frontier.frontier().first()
            && window.done.replace(*done) != *done
            && let Some(source) = &*window.source.borrow()
        {
            source.activate();
        }
        let (mut count, mut sum) = totals.get();
        input.for_each_time(|_, batches| {
            for batch in batches {
                count += batch.len() as u64;
                sum = batch.iter().map(counting::digest).fold(sum, u64::wrapping_add);
            }
        });
        totals.set((count, sum));
    });
}

/// Starts the processes on ports of the loopback, and joins what they report.
fn run_processes(args: &Args) -> Measured {
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    let program = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
    // All held until each has its number, so that no two are the same.
    let ports: Result<Vec<_>, _> =
        (0..args.processes).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let ports = ports.map_err(|error| format!("ports: {error}"))?;
    let addresses: Result<Vec<_>, _> = ports.iter().map(TcpListener::local_addr).collect();
    let addresses = addresses.map_err(|error| format!("ports: {error}"))?;
    drop(ports);
    let mut children = Vec::new();
    for process in 0..args.processes {
        let own = Args {
            report_dir: Some(directory.path().to_owned()),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            process,
            ..args.clone()
        };
        let child = Command::new(&program).args(own.to_arguments()).stdin(Stdio::null()).spawn();
        children.push(child.map_err(|error| format!("starting a process: {error}"))?);
    }
    for child in &mut children {
        let status = child.wait().map_err(|error| format!("waiting for a process: {error}"))?;
        if !status.success() {
            return Err(format!("a process ended with {status}"));
        }
    }
    report::join(directory.path(), args)
}
