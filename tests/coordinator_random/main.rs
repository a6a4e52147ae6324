//! Drives the coordinator with random events, lost, duplicated and reordered, and checks its
//! contract from outside.
//!
//! A run has two parts. In the first, workers and storage answer late, twice, wrongly or never. In
//! the second every answer comes (in any order, some twice), nothing fails, and all sources come to
//! their end: the job must finish.

mod checker;

use std::collections::BTreeMap;
use std::time::Duration;

use checker::{Checker, Part};
use highwater::config::CheckpointConfig;
use highwater::ids::{Attempt, Epoch};
use highwater::protocol::abort::AbortReason;
use highwater::protocol::coordinator::{Coordinator, CoordinatorSetup, Effect, Event};

const SEEDS: u64 = 10_000;
const CHAOS_STEPS: usize = 150;
const QUIET_STEPS_MAX: usize = 2_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

struct World {
    random: Random,
    workers: usize,
    coordinator: Coordinator<Part>,
    checker: Checker,
    now: Duration,
    /// Messages on their way.
    underway: Vec<Event<Part>>,
    /// Messages that were delivered: any of them may come again.
    delivered: Vec<Event<Part>>,
    part: Part,
    request: u64,
    chaos: bool,
}

fn setup(random: &mut Random) -> CoordinatorSetup {
    let first_epoch = Epoch(1 + random.below(50));
    let mut before: Vec<Epoch> =
        (1..first_epoch.0).filter(|_| random.percent(10)).map(Epoch).collect();
    before.dedup();
    CoordinatorSetup {
        checkpoints: CheckpointConfig {
            interval: random.percent(90).then(|| Duration::from_millis(1 + random.below(40))),
            timeout: Duration::from_millis(1 + random.below(80)),
            min_pause: if random.percent(50) { Duration::ZERO } else { random.millis(40) },
            concurrent_max: 1 + random.below(4) as u32,
            tolerable_failures: random.percent(20).then(|| random.below(6) as u32),
            retained: 1 + random.below(3) as u32,
            ..CheckpointConfig::default()
        },
        workers: 1 + random.below(4) as usize,
        first_epoch,
        reserved_end: Epoch(first_epoch.0 + random.below(150)),
        restored: before.last().copied(),
        retained_before: before,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let setup = setup(&mut random);
        Self {
            workers: setup.workers,
            checker: Checker::new(&setup),
            coordinator: Coordinator::new(setup),
            now: random.millis(1000),
            random,
            underway: Vec::new(),
            delivered: Vec::new(),
            part: 0,
            request: 0,
            chaos: true,
        }
    }

    fn step(&mut self, event: Event<Part>) {
        self.checker.event(self.now, &event);
        let mut effects = Vec::new();
        self.coordinator.step(self.now, event, &mut effects);
        self.checker.effects(self.now, &effects);
        self.checker.between(self.now, &self.coordinator);
        effects.iter().for_each(|effect| self.answer(effect));
    }

    fn answer(&mut self, effect: &Effect<Part>) {
        match *effect {
            Effect::Begin { epoch, .. } => (0..self.workers).for_each(|w| self.part_of(epoch, w)),
            Effect::Publish { epoch, .. } => {
                let reason = self.fault();
                self.underway.push(match reason {
                    Some(reason) => Event::PublishFailed { epoch, reason },
                    None => Event::Published { epoch },
                });
            }
            Effect::Reserve { from } => {
                let reason = self.fault();
                let end = Epoch(from.0 + 1 + self.random.below(200));
                self.underway.push(match reason {
                    Some(reason) => Event::ReserveFailed { reason },
                    None => Event::Reserved { end },
                });
            }
            Effect::Complete { epoch, .. } => self
                .underway
                .extend((0..self.workers).map(|worker| Event::WorkerCommitted { worker, epoch })),
            Effect::DrainSources => self.finish_all(),
            _ => {}
        }
    }

    fn part_of(&mut self, epoch: Epoch, worker: usize) {
        self.part += 1;
        let in_flight = self.chaos && self.random.percent(20);
        let ack = Event::Ack { epoch, worker, part: self.part, in_flight };
        match self.random.below(100) {
            0..3 if self.chaos => {} // Never.
            3..6 if self.chaos => {
                let reason = match self.random.below(3) {
                    0 => AbortReason::NotReady { worker, why: "starting".to_owned() },
                    1 => AbortReason::Superseded { by: epoch.next() },
                    _ => AbortReason::Declined { worker, operator: None, why: "disk".to_owned() },
                };
                self.underway.push(Event::Decline { epoch, worker, reason });
            }
            6..10 => {
                self.part += 1;
                let again = Event::Ack { epoch, worker, part: self.part, in_flight: !in_flight };
                self.underway.extend([ack, again]);
            }
            _ => self.underway.push(ack),
        }
    }

    fn fault(&mut self) -> Option<AbortReason> {
        match self.random.below(1000) {
            0..3 if self.chaos => Some(AbortReason::Fenced { by: Attempt(9) }),
            3..100 if self.chaos => Some(AbortReason::Storage { why: "disk".to_owned() }),
            _ => None,
        }
    }

    fn finish_all(&mut self) {
        self.underway.extend((0..self.workers).map(|worker| Event::WorkerFinished { worker }));
    }

    /// Delivers a message: one on its way, or one that was delivered before.
    fn deliver(&mut self) {
        let again = self.random.percent(15) && !self.delivered.is_empty();
        let event = if again {
            let index = self.random.below(self.delivered.len() as u64) as usize;
            self.delivered[index].clone()
        } else if self.underway.is_empty() {
            return;
        } else {
            let index = self.random.below(self.underway.len() as u64) as usize;
            let event = self.underway.swap_remove(index);
            self.delivered.push(event.clone());
            event
        };
        self.step(event);
    }

    fn chaos_step(&mut self) {
        match self.random.below(1000) {
            0..600 => self.deliver(),
            600..940 => {
                self.now += self.random.millis(10);
                self.step(Event::Tick);
            }
            940..960 => self.step(Event::Trigger),
            960..970 => {
                let worker = self.random.below(self.workers as u64) as usize;
                self.underway.push(Event::WorkerFinished { worker });
            }
            970..972 => {
                let drain = self.random.percent(50);
                self.step(Event::Stop { drain });
            }
            980..983 => {
                self.request += 1;
                self.step(Event::Savepoint { request: self.request });
            }
            983..985 => {
                self.request += 1;
                let drain = self.random.percent(30);
                self.step(Event::StopWithSavepoint { request: self.request, drain });
            }
            972..973 => self.step(Event::Cancel),
            973..980 => self.step(Event::WorkerFinished { worker: self.workers }),
            985..990 => {
                let epoch = Epoch(self.random.below(300));
                let worker = self.workers + self.random.below(2) as usize;
                self.step(Event::Ack { epoch, worker, part: 0, in_flight: false });
            }
            _ => {
                let epoch = Epoch(self.random.below(300));
                let reason = AbortReason::Stopping;
                self.step(Event::Decline { epoch, worker: self.workers, reason });
            }
        }
    }

    /// Everything is delivered, nothing fails, input ends: the job must finish.
    fn finish(&mut self) {
        self.chaos = false;
        self.finish_all();
        for _ in 0..QUIET_STEPS_MAX {
            if self.checker.over {
                return;
            }
            if !self.underway.is_empty() {
                self.deliver();
                continue;
            }
            let due = self.coordinator.next_deadline();
            self.now = due.expect("liveness: neither a message nor a deadline, but not over");
            self.step(Event::Tick);
        }
        panic!("not finished: {:?}", self.coordinator.status());
    }
}

#[test]
fn the_contract_holds_under_lost_duplicated_and_reordered_events_and_the_job_finishes() {
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.step(Event::Tick);
            for _ in 0..CHAOS_STEPS {
                world.chaos_step();
            }
            world.finish();
            // C6: whatever still comes changes nothing; the checker refuses every effect.
            for _ in 0..10 {
                world.chaos_step();
            }
            world.checker.counts
        });
        let counts = run.unwrap_or_else(|_| panic!("seed {seed}"));
        for (what, count) in counts {
            *total.entry(what).or_default() += count;
        }
    }
    println!("{total:?}");
    // Nothing is proven about what did not happen.
    for what in [
        "periodic",
        "final",
        "complete",
        "expired",
        "declined",
        "not published",
        "subsumed",
        "stopping",
        "undecided",
        "other",
        "drain",
        "savepoint",
        "final savepoint",
        "final again",
        "final in flight",
        "savepoint failed",
        "stop undone",
        "finish",
        "cancel",
        "fenced",
        "intolerable",
    ] {
        let count = total.get(what).copied().unwrap_or(0);
        assert!(count >= 50, "{what} happened {count} times only: {total:?}");
    }
}
