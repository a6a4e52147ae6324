//! Runs the examples that check themselves.

#[path = "../examples/graph.rs"]
#[expect(dead_code, reason = "the part of the example that is a program")]
mod graph;
#[path = "../examples/simulate.rs"]
mod simulate;

#[test]
fn facts_about_a_graph_stay_right_through_kills_and_on_any_number_of_workers() {
    // It asserts what it finds.
    graph::demonstrate();
}

#[test]
fn the_simulator_finds_the_bugs_of_the_example_and_passes_the_sink_that_is_right() {
    // It asserts what it finds.
    simulate::main();
}
