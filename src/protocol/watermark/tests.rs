//! Tests of event time at the sources.

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fresh(strategy: &WatermarkStrategy, splits: usize) -> SplitWatermarks {
    SplitWatermarks::new(strategy, &vec![SplitState::NEW; splits], at(0))
}

fn idle_after_ten() -> WatermarkStrategy {
    WatermarkStrategy::monotonic().with_idle_timeout(at(10))
}

#[test]
fn the_event_coordinate_is_one_above_the_watermark_and_the_ends_stay() {
    assert_eq!(event_coordinate(41), 42);
    assert_eq!(event_coordinate(i64::MIN), i64::MIN);
    assert_eq!(event_coordinate(i64::MAX), i64::MAX);
    assert_eq!(event_coordinate(i64::MAX - 1), i64::MAX);
    for watermark in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 2, i64::MAX] {
        assert_eq!(watermark_at(event_coordinate(watermark)), watermark);
    }
}

#[test]
fn a_monotonic_split_promises_its_last_timestamp_less_one() {
    let mut watermarks = fresh(&WatermarkStrategy::monotonic(), 1);
    assert_eq!(watermarks.watermark(), i64::MIN);
    watermarks.observe(0, [100, 101], at(0));
    assert_eq!(watermarks.advance(at(0)), 100);
    watermarks.observe(0, [i64::MIN, 50], at(1));
    assert_eq!(watermarks.advance(at(1)), 100, "a late record does not move it back");
}

#[test]
fn a_record_at_the_end_of_time_does_not_end_event_time() {
    let mut watermarks = fresh(&WatermarkStrategy::monotonic(), 1);
    watermarks.observe(0, [i64::MAX], at(0));
    assert!(event_coordinate(watermarks.advance(at(0))) < i64::MAX);
    watermarks.finish(0);
    assert_eq!(event_coordinate(watermarks.advance(at(1))), i64::MAX, "the end of the input does");
}

#[test]
fn a_bounded_split_allows_for_disorder() {
    let mut watermarks = fresh(&WatermarkStrategy::bounded(Duration::from_micros(4_500)), 1);
    watermarks.observe(0, [100], at(0));
    assert_eq!(watermarks.advance(at(0)), 94, "4.5 ms are rounded up to 5");
    let mut boundless = fresh(&WatermarkStrategy::bounded(Duration::MAX), 1);
    boundless.observe(0, [100], at(0));
    assert!(boundless.advance(at(0)) < 0);
}

#[test]
fn a_generator_of_the_users_own_is_made_for_each_split_and_cannot_go_back() {
    struct Last(i64);
    impl WatermarkGenerator for Last {
        fn on_event(&mut self, timestamp: i64) {
            self.0 = timestamp;
        }
        fn current(&self) -> i64 {
            self.0
        }
    }
    let mut watermarks = fresh(&WatermarkStrategy::custom(|| Last(i64::MIN)), 2);
    watermarks.observe(0, [70, 60], at(0));
    assert_eq!(watermarks.advance(at(0)), i64::MIN, "the other split has its own generator");
    watermarks.observe(1, [80], at(0));
    assert_eq!(watermarks.advance(at(0)), 60);
    watermarks.observe(0, [10], at(0));
    assert_eq!(watermarks.advance(at(0)), 60);
}

#[test]
fn the_slowest_split_holds_back_and_a_finished_one_does_not() {
    let mut watermarks = fresh(&WatermarkStrategy::monotonic(), 3);
    watermarks.observe(0, [100], at(0));
    watermarks.observe(1, [200], at(0));
    assert_eq!(watermarks.advance(at(0)), i64::MIN, "split 2 has said nothing");
    watermarks.finish(2);
    assert_eq!(watermarks.advance(at(0)), 99);
    watermarks.finish(0);
    assert_eq!(watermarks.advance(at(0)), 199);
    watermarks.finish(1);
    assert_eq!(watermarks.advance(at(0)), i64::MAX);
    let finished = InstanceStatus { watermark: i64::MAX, idle: false, finished: true };
    assert_eq!(watermarks.status(), finished);
}

#[test]
fn an_instance_without_splits_is_at_the_end_of_time() {
    let watermarks = fresh(&WatermarkStrategy::monotonic(), 0);
    assert_eq!(watermarks.watermark(), i64::MAX);
    assert!(watermarks.status().finished);
}

#[test]
fn a_quiet_split_becomes_idle_and_holds_back_again_when_it_speaks() {
    let mut watermarks = fresh(&idle_after_ten(), 2);
    watermarks.observe(0, [100], at(1));
    watermarks.observe(1, [500], at(9));
    assert_eq!(watermarks.next_idle(), Some(at(11)));
    assert_eq!(watermarks.advance(at(10)), 99);
    watermarks.observe(0, [], at(10));
    assert_eq!(watermarks.advance(at(11)), 499, "an empty read is no sign of life");
    assert!(!watermarks.status().idle, "split 1 is active");
    watermarks.observe(1, [900], at(12));
    watermarks.observe(0, [700], at(12));
    assert_eq!(watermarks.advance(at(12)), 699);
}

#[test]
fn a_split_that_never_spoke_becomes_idle_too() {
    let mut watermarks = fresh(&idle_after_ten(), 2);
    watermarks.observe(0, [100], at(5));
    assert_eq!(watermarks.advance(at(10)), 99);
}

#[test]
fn without_a_timeout_no_split_is_ever_idle() {
    let mut watermarks = fresh(&WatermarkStrategy::monotonic(), 2);
    watermarks.observe(0, [100], at(0));
    assert_eq!(watermarks.advance(at(1_000_000)), i64::MIN);
    assert_eq!(watermarks.next_idle(), None);
}

#[test]
fn time_in_which_flow_control_stops_the_source_is_not_idle_time() {
    let mut watermarks = fresh(&idle_after_ten(), 2);
    watermarks.observe(0, [100], at(0));
    watermarks.observe(1, [500], at(0));
    watermarks.set_blocked(true, at(4));
    watermarks.set_blocked(true, at(5));
    assert_eq!(watermarks.next_idle(), None);
    assert_eq!(watermarks.advance(at(3600)), 99);
    assert!(!watermarks.status().idle);
    watermarks.set_blocked(false, at(3604));
    watermarks.observe(1, [600], at(3605));
    assert_eq!(watermarks.next_idle(), Some(at(3610)));
    assert_eq!(watermarks.advance(at(3609)), 99);
    assert_eq!(watermarks.advance(at(3610)), 599);
}

#[test]
fn an_idle_instance_stays_where_it_is_and_follows_the_others() {
    let mut watermarks = fresh(&idle_after_ten(), 2);
    watermarks.observe(0, [100], at(0));
    watermarks.follow(1_000);
    assert_eq!(watermarks.advance(at(1)), i64::MIN, "an active instance follows nobody");
    watermarks.finish(1);
    assert_eq!(watermarks.advance(at(2)), 99);
    assert_eq!(watermarks.advance(at(20)), 99);
    assert!(watermarks.status().idle, "one split idle, the other at its end");
    watermarks.follow(1_000);
    watermarks.follow(400);
    assert_eq!(watermarks.watermark(), 1_000);
    watermarks.observe(0, [500], at(21));
    assert_eq!(watermarks.advance(at(21)), 1_000, "the record is late; time does not go back");
}

#[test]
fn idle_instances_follow_the_slowest_that_is_neither_idle_nor_finished() {
    let status = |watermark, idle| InstanceStatus { watermark, idle, finished: false };
    let finished = InstanceStatus { watermark: i64::MAX, idle: false, finished: true };
    assert_eq!(idle_target([status(5, true), status(9, false), status(7, false)]), Some(7));
    assert_eq!(idle_target([status(5, true), finished, status(9, false)]), Some(9));
    assert_eq!(idle_target([status(5, true), finished]), None);
    assert_eq!(idle_target([]), None);
}

#[test]
fn event_time_never_goes_back_across_a_restore_however_splits_are_dealt() {
    // I9. Split 0 is far behind but idle, so the instance has gone on without it.
    let mut before = fresh(&idle_after_ten(), 3);
    before.observe(0, [100], at(0));
    before.observe(1, [900], at(9));
    before.finish(2);
    assert_eq!(before.advance(at(10)), 899);
    let state: Vec<SplitState> = (0..3).map(|split| before.state(split)).collect();
    let bytes = serde_json::to_vec(&state).unwrap();
    let state: Vec<SplitState> = serde_json::from_slice(&bytes).unwrap();

    for dealt in [&state[..], &state[..1], &state[1..], &state[2..]] {
        let mut after = SplitWatermarks::new(&idle_after_ten(), dealt, at(0));
        assert!(after.watermark() >= 899, "{dealt:?}");
        if !dealt[0].finished {
            after.observe(0, [120], at(1));
            assert!(after.advance(at(1)) >= 899, "{dealt:?}");
        }
    }
}
