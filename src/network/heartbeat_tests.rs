//! Tests of the heartbeat.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (connecting, listener.accept().unwrap().0)
}

fn config(interval: u64, timeout: u64) -> HeartbeatConfig {
    let [interval, timeout] = [interval, timeout].map(Duration::from_millis);
    HeartbeatConfig { interval, timeout }
}

/// A heartbeat of process 0 with one peer, process 1.
fn watch(stream: TcpStream, config: HeartbeatConfig) -> (Heartbeat, Receiver<PeerLost>) {
    let (sender, losses) = channel();
    let on_lost = Arc::new(move |lost| sender.send(lost).unwrap_or(()));
    (Heartbeat::start(vec![None, Some(stream)], config, on_lost).unwrap(), losses)
}

#[test]
fn a_closed_connection_is_noticed_at_once() {
    let (ours, theirs) = pair();
    let (heartbeat, losses) = watch(ours, config(10_000, 60_000));
    let closed = Instant::now();
    drop(theirs);
    let lost = losses.recv_timeout(SOON).unwrap();
    assert!(closed.elapsed() < Duration::from_secs(1), "{:?}", closed.elapsed());
    assert_eq!(lost.process, 1);
    heartbeat.stop();
}

#[test]
fn silence_is_noticed_within_timeout_and_interval() {
    let (ours, theirs) = pair();
    let config = config(100, 400);
    let (heartbeat, losses) = watch(ours, config.clone());
    let started = Instant::now();
    let lost = losses.recv_timeout(SOON).unwrap();
    let after = started.elapsed();
    assert!(after >= config.timeout - Duration::from_millis(50), "{after:?}");
    assert!(after < config.timeout + config.interval, "{after:?}");
    assert!(lost.why.starts_with("silent for 0."), "{lost:?}");
    // One loss, one report.
    heartbeat.stop();
    assert!(losses.recv().is_err());
    drop(theirs);
}

#[test]
fn peers_that_live_do_not_lose_each_other_and_part_by_goodbye() {
    let (ours, theirs) = pair();
    let (near, near_losses) = watch(ours, config(20, 200));
    let (far, far_losses) = watch(theirs, config(20, 200));
    // Twice the timeout: without beats both would be lost by now.
    assert!(near_losses.recv_timeout(Duration::from_millis(400)).is_err());
    near.stop();
    // After a goodbye neither the end of the connection nor silence is a loss.
    assert!(far_losses.recv_timeout(Duration::from_millis(400)).is_err());
    drop(far);
    assert!(near_losses.recv().is_err());
    assert!(far_losses.recv().is_err());
}

#[test]
fn beats_go_out_every_interval_and_a_goodbye_at_the_end() {
    let (ours, mut theirs) = pair();
    let (heartbeat, _losses) = watch(ours, config(10, 60_000));
    let mut bytes = [0; 3];
    theirs.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [BEAT; 3]);
    heartbeat.stop();
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    assert!(rest.contains(&GOODBYE), "{rest:?}");
}

#[test]
fn stopping_inside_the_report_of_a_loss_does_not_hang() {
    let (ours, theirs) = pair();
    let held: Arc<std::sync::Mutex<Option<Heartbeat>>> = Arc::default();
    let (sender, stopped) = channel();
    let in_report = Arc::clone(&held);
    let on_lost: Arc<dyn Fn(PeerLost) + Send + Sync> = Arc::new(move |_| {
        let heartbeat = in_report.lock().unwrap().take().unwrap();
        heartbeat.stop();
        sender.send(()).unwrap();
    });
    let mut guard = held.lock().unwrap();
    *guard = Some(Heartbeat::start(vec![Some(ours)], config(10, 60_000), on_lost).unwrap());
    drop(theirs);
    drop(guard);
    stopped.recv_timeout(SOON).unwrap();
}
