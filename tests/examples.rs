//! Runs the examples that check themselves.

#[path = "../examples/simulate.rs"]
mod simulate;

#[test]
fn the_simulator_finds_the_bugs_of_the_example_and_passes_the_sink_that_is_right() {
    // It asserts what it finds.
    simulate::main();
}
