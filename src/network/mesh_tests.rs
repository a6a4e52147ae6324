//! Tests of the mesh: processes that come late, twice, wrongly or never.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::config::HeartbeatConfig;
use crate::ids::Name;
use crate::network::testing::{eventually, free_addresses};
use crate::network::{ANNOUNCEMENT_BYTES_MAX, Secret, check_exposure};

const PLENTY: Duration = Duration::from_secs(20);

fn setup(addresses: &[String], process: usize, secret: &Secret) -> MeshSetup {
    MeshSetup {
        job: Name::new("count").unwrap(),
        processes: addresses.len(),
        process,
        addresses: addresses.to_vec(),
        secret: secret.clone(),
        connect_timeout: PLENTY,
        heartbeat: HeartbeatConfig {
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(3),
        },
    }
}

type Joining = JoinHandle<Result<Mesh, NetworkError>>;

fn start(setup: MeshSetup, attempt: u64) -> Joining {
    let announce = (setup.process == 0).then(|| (Attempt(attempt), b"plan".to_vec()));
    thread::spawn(move || connect(setup, announce))
}

fn finish(joining: Vec<Joining>) -> Vec<Mesh> {
    joining.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
}

/// Every pair must be able to talk, on both kinds of socket, from the first byte on.
fn assert_complete(meshes: &[Mesh], attempt: u64) {
    for (me, mesh) in meshes.iter().enumerate() {
        assert_eq!(mesh.attempt, Attempt(attempt));
        assert_eq!(mesh.announcement, b"plan");
        for streams in [&mesh.streams, &mesh.heartbeats] {
            assert_eq!(streams.len(), meshes.len());
            for (peer, stream) in streams.iter().enumerate() {
                assert_eq!(stream.is_none(), peer == me);
                let Some(mut stream) = stream.as_ref() else { continue };
                assert!(stream.nodelay().unwrap());
                assert_eq!(stream.read_timeout().unwrap(), None);
                assert_eq!(stream.write_timeout().unwrap(), None);
                stream.write_all(&[me as u8, peer as u8]).unwrap();
            }
        }
    }
    for (me, mesh) in meshes.iter().enumerate() {
        for streams in [&mesh.streams, &mesh.heartbeats] {
            for (peer, stream) in streams.iter().enumerate() {
                let Some(mut stream) = stream.as_ref() else { continue };
                let mut bytes = [0; 2];
                stream.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes, [peer as u8, me as u8]);
            }
        }
    }
}

/// Connects as soon as somebody listens.
fn knock(address: &str) -> TcpStream {
    eventually("a listener", || TcpStream::connect(address).ok())
}

#[test]
fn three_processes_find_each_other_whatever_the_order_of_their_starts() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let (addresses, secret) = (free_addresses(3), Secret::generate().unwrap());
        let mut joining: Vec<_> =
            order.map(|p| (p, start(setup(&addresses, p, &secret), 4))).into();
        joining.sort_by_key(|(process, _)| *process);
        let meshes = finish(joining.into_iter().map(|(_, thread)| thread).collect());
        assert_complete(&meshes, 4);
        // The listeners are closed once the mesh stands.
        for address in &addresses {
            assert!(TcpStream::connect(address).is_err());
        }
    }
}

#[test]
fn one_process_is_a_mesh_of_its_own_and_listens_to_nobody() {
    let secret = Secret::generate().unwrap();
    let mesh = start(setup(&["127.0.0.1:1".into()], 0, &secret), 2).join().unwrap().unwrap();
    assert_eq!(mesh.attempt, Attempt(2));
    assert!(matches!(mesh.streams.as_slice(), [None]));
}

#[test]
fn strangers_junk_and_half_open_connections_do_not_hold_up_the_start() {
    let (addresses, secret) = (free_addresses(2), Secret::generate().unwrap());
    let zero = start(setup(&addresses, 0, &secret), 1);
    // More silent ones than may be under way, and among them junk and a stranger with another
    // secret.
    let silent: Vec<_> =
        (0..super::super::reception::HALF_OPEN_MAX + 10).map(|_| knock(&addresses[0])).collect();
    knock(&addresses[0]).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    knock(&addresses[0]).write_all(&[0xFF; 4096]).unwrap();
    drop(knock(&addresses[0]));
    let mut stranger = setup(&addresses, 1, &Secret::generate().unwrap());
    stranger.connect_timeout = Duration::from_millis(300);
    let error = start(stranger, 1).join().unwrap().unwrap_err();
    assert!(error.to_string().contains("does not hold the same secret"), "{error}");
    let started = Instant::now();
    let meshes = finish(vec![zero, start(setup(&addresses, 1, &secret), 1)]);
    assert!(started.elapsed() < HANDSHAKE_TIMEOUT, "{:?}", started.elapsed());
    assert_complete(&meshes, 1);
    drop(silent);
}

#[test]
fn a_process_of_another_job_or_size_is_told_so_and_the_others_go_on() {
    let (addresses, secret) = (free_addresses(2), Secret::generate().unwrap());
    let zero = start(setup(&addresses, 0, &secret), 1);

    let mut other = setup(&addresses, 1, &secret);
    other.job = Name::new("other").unwrap();
    let error = start(other, 1).join().unwrap().unwrap_err();
    assert!(error.is_configuration());
    let text = chain(&error);
    assert!(text.contains("it runs job count, not other"), "{text}");

    let mut larger = setup(&addresses, 1, &secret);
    larger.processes = 3;
    larger.addresses.push("127.0.0.1:1".into());
    let text = chain(&start(larger, 1).join().unwrap().unwrap_err());
    assert!(text.contains("it counts 2 processes, not 3"), "{text}");

    let meshes = finish(vec![zero, start(setup(&addresses, 1, &secret), 1)]);
    assert_complete(&meshes, 1);
}

#[test]
fn a_second_process_of_the_same_index_is_refused_while_the_first_lives() {
    let (addresses, secret) = (free_addresses(3), Secret::generate().unwrap());
    let zero = start(setup(&addresses, 0, &secret), 1);
    let connected = hold(&addresses, 2, &secret);
    let mut second = setup(&addresses, 2, &secret);
    second.connect_timeout = Duration::from_millis(300);
    // The twin cannot listen on the address, so it is given another one of its own.
    second.addresses[2] = free_addresses(1).remove(0);
    let error = start(second, 1).join().unwrap().unwrap_err();
    assert!(error.to_string().contains("a process 2 is connected already"), "{error}");
    // Once the first is gone its place is free.
    drop(connected);
    let meshes = finish(vec![
        zero,
        start(setup(&addresses, 1, &secret), 1),
        start(setup(&addresses, 2, &secret), 1),
    ]);
    assert_complete(&meshes, 1);
}

/// Joins process 0 as `process` would, and goes no further.
fn hold(addresses: &[String], process: usize, secret: &Secret) -> TcpStream {
    let hello = Hello {
        job: Name::new("count").unwrap(),
        processes: as_index(addresses.len()),
        process: as_index(process),
        peer: 0,
        purpose: Purpose::Data,
        attempt: None,
        session: random_bytes().unwrap(),
        nonce: random_bytes().unwrap(),
    };
    let stream = knock(&addresses[0]);
    initiate(&stream, secret, &hello, Instant::now() + PLENTY).unwrap();
    stream
}

#[test]
fn a_process_of_a_stale_attempt_is_refused_by_name() {
    let (addresses, secret) = (free_addresses(2), Secret::generate().unwrap());
    let zero = start(setup(&addresses, 0, &secret), 6);
    let hello = Hello {
        job: Name::new("count").unwrap(),
        processes: 2,
        process: 1,
        peer: 0,
        purpose: Purpose::Heartbeat,
        attempt: Some(Attempt(5)),
        session: [0; 16],
        nonce: random_bytes().unwrap(),
    };
    let stream = knock(&addresses[0]);
    let error = initiate(&stream, &secret, &hello, Instant::now() + PLENTY).unwrap_err();
    assert!(error.to_string().contains("attempt 6, not in attempt 5"), "{error}");
    assert!(!error.is_lasting());
    assert_complete(&finish(vec![zero, start(setup(&addresses, 1, &secret), 6)]), 6);
}

#[test]
fn the_others_join_a_process_0_that_restarts_before_the_mesh_stands() {
    let (addresses, secret) = (free_addresses(3), Secret::generate().unwrap());
    // The first process 0 goes through the handshakes with both and dies.
    let listener = TcpListener::bind(&addresses[0]).unwrap();
    listener.set_nonblocking(true).unwrap();
    let others = [1, 2].map(|p| start(setup(&addresses, p, &secret), 0));
    let mut old = Reception::new(&listener, &secret);
    let mut held = Vec::new();
    while held.len() < 4 {
        let Some(applicant) = old.next(POLL).unwrap() else { continue };
        let verdict = Verdict::Accepted { attempt: Attempt(5), announcement: b"old".to_vec() };
        held.push(applicant.answer(&secret, &verdict).unwrap());
    }
    drop((old, held));
    drop(listener);
    let mut joining = vec![start(setup(&addresses, 0, &secret), 6)];
    joining.extend(others);
    assert_complete(&finish(joining), 6);
}

#[test]
fn a_process_that_restarts_before_the_mesh_stands_takes_its_place_again() {
    let (addresses, secret) = (free_addresses(3), Secret::generate().unwrap());
    let joining = [0, 1].map(|p| start(setup(&addresses, p, &secret), 3));
    let mut victim = setup(&addresses, 2, &secret);
    // It gives up, which closes its sockets, before or after it has reached the others.
    for lifetime in [1, 5, 20, 50] {
        victim.connect_timeout = Duration::from_millis(lifetime);
        if let Ok(mesh) = start(victim.clone(), 3).join().unwrap() {
            // It was quicker than that: the mesh stands.
            let mut meshes = finish(joining.into());
            meshes.push(mesh);
            return assert_complete(&meshes, 3);
        }
    }
    let mut joining = Vec::from(joining);
    joining.push(start(setup(&addresses, 2, &secret), 3));
    assert_complete(&finish(joining), 3);
}

#[test]
fn connecting_ends_by_its_timeout_and_says_who_was_missing() {
    let (addresses, secret) = (free_addresses(3), Secret::generate().unwrap());
    let joining = [0, 1].map(|p| {
        let mut setup = setup(&addresses, p, &secret);
        setup.connect_timeout = Duration::from_millis(400);
        start(setup, 1)
    });
    let started = Instant::now();
    for thread in joining {
        let error = thread.join().unwrap().unwrap_err();
        let text = chain(&error);
        assert!(matches!(error, NetworkError::Timeout { .. }), "{text}");
        assert!(text.contains("process"), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_silent_process_0_does_not_hang_the_others_beyond_the_timeout() {
    let (addresses, secret) = (free_addresses(2), Secret::generate().unwrap());
    let listener = TcpListener::bind(&addresses[0]).unwrap();
    let mut one = setup(&addresses, 1, &secret);
    one.connect_timeout = Duration::from_millis(300);
    let started = Instant::now();
    let error = start(one, 1).join().unwrap().unwrap_err();
    assert!(matches!(error, NetworkError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    drop(listener);
}

#[test]
fn a_breaker_ends_the_reads_of_those_who_hold_the_streams() {
    let (addresses, secret) = (free_addresses(2), Secret::generate().unwrap());
    let mut meshes = finish((0..2).map(|p| start(setup(&addresses, p, &secret), 1)).collect());
    let breaker = meshes[0].breaker().unwrap();
    let mut held = meshes[0].streams.swap_remove(1).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    let reader = thread::spawn(move || {
        let read = held.read(&mut [0]).unwrap();
        told.store(true, Ordering::SeqCst);
        read
    });
    assert!(!ended.load(Ordering::SeqCst));
    breaker.cut();
    assert_eq!(reader.join().unwrap(), 0);
    assert_eq!(meshes[1].streams[0].as_ref().unwrap().read(&mut [0]).unwrap(), 0);
}

#[test]
fn addresses_beyond_loopback_need_a_secret() {
    let check = |address: &str, given| check_exposure(&[address.to_string()], given);
    for address in ["127.0.0.1:1", "127.8.9.1:1", "localhost:1", "[::1]:1"] {
        check(address, false).unwrap();
    }
    for address in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "host:1", "localhost.evil:1", "*:1"] {
        let error = check(address, false).unwrap_err();
        assert!(error.to_string().contains(address), "{error}");
        check(address, true).unwrap();
    }
    check_exposure(&[], false).unwrap();
}

#[test]
fn setups_that_contradict_themselves_are_refused() {
    let secret = Secret::generate().unwrap();
    let good = setup(&free_addresses(2), 0, &secret);
    let announce = || Some((Attempt(1), Vec::new()));
    let refuse = |change: &dyn Fn(&mut MeshSetup), announce| {
        let mut setup = good.clone();
        change(&mut setup);
        let error = connect(setup, announce).unwrap_err();
        assert!(matches!(error, NetworkError::Setup { .. }), "{error}");
    };
    refuse(&|s| s.process = 2, announce());
    refuse(&|s| s.process = 1, announce());
    refuse(&|s| s.addresses.truncate(1), announce());
    refuse(&|s| s.processes = 100_000, announce());
    refuse(&|s| s.heartbeat.timeout = s.heartbeat.interval, announce());
    refuse(&|_| {}, None);
    refuse(&|_| {}, Some((Attempt(1), vec![0; ANNOUNCEMENT_BYTES_MAX + 1])));
}

#[test]
fn an_address_that_is_taken_is_named() {
    let (addresses, secret) = (free_addresses(2), Secret::generate().unwrap());
    let taken = TcpListener::bind(&addresses[0]).unwrap();
    let mut zero = setup(&addresses, 0, &secret);
    zero.connect_timeout = Duration::from_millis(100);
    let error = start(zero, 1).join().unwrap().unwrap_err();
    assert!(matches!(error, NetworkError::Bind { process: 0, .. }), "{error}");
    assert!(error.to_string().contains(&addresses[0]), "{error}");
    drop(taken);
}

#[test]
fn timely_runs_over_the_streams_of_a_mesh() {
    use timely::communication::Hooks;
    use timely::communication::allocator::zero_copy::initialize as timely_network;
    use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
    use timely::dataflow::operators::vec::ToStream;
    use timely::dataflow::operators::{Exchange, Inspect};

    const WORKERS: usize = 2;
    let (addresses, secret) = (free_addresses(3), Secret::generate().unwrap());
    let run = |process| {
        let setup = setup(&addresses, process, &secret);
        move || {
            let announce = (process == 0).then(|| (Attempt(1), Vec::new()));
            let mesh = connect(setup, announce).unwrap();
            let allocators =
                ProcessBuilder::new_typed_vector(WORKERS, Hooks::default().refill, None);
            let (builders, guard) = timely_network::initialize_networking_from_sockets(
                allocators,
                mesh.streams,
                process,
                WORKERS,
                Hooks::default(),
            )
            .unwrap();
            let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
            let config = timely::WorkerConfig::default();
            let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
            let sink = Arc::clone(&seen);
            timely::execute::execute_from(builders, Box::new(guard), config, move |worker| {
                let (index, sink) = (worker.index() as u64, Arc::clone(&sink));
                worker.dataflow::<u64, _, _>(|scope| {
                    (index * 100..index * 100 + 100)
                        .to_stream(scope)
                        .container::<Vec<_>>()
                        .exchange(|record| *record)
                        .inspect(move |record| sink.lock().unwrap().push((index, *record)));
                });
            })
            .unwrap()
            .join()
            .into_iter()
            .for_each(Result::unwrap);
            Arc::into_inner(seen).unwrap().into_inner().unwrap()
        }
    };
    let running = [0, 1, 2].map(|process| thread::spawn(run(process)));
    let mut seen: Vec<_> = running.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert!(seen.iter().all(|(worker, record)| record % 6 == *worker));
    seen.sort_unstable_by_key(|(_, record)| *record);
    let records: Vec<_> = seen.into_iter().map(|(_, record)| record).collect();
    assert_eq!(records, (0..600).collect::<Vec<_>>());
}
