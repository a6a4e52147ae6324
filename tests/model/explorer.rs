//! Visits every state that a model can reach, breadth first, and reports the shortest way to a wrong one.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::rc::Rc;

use rustc_hash::FxBuildHasher;

/// More states than this are a mistake in the model's bounds.
const STATES_MAX: usize = 4_000_000;

/// What can be explored: states, the steps between them, and what must never be.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Step: Copy + Debug;
    type Violation: Debug;

    fn first(&self) -> Self::State;

    /// What the protocol may do next. `state` is changed by nobody; but some things in it show themselves only to who may.
    fn steps(&self, state: &mut Self::State, steps: &mut Vec<Self::Step>);

    /// What may happen to the protocol, but need not.
    fn faults(&self, state: &Self::State, steps: &mut Vec<Self::Step>);

    /// Takes a step, and says what is wrong with it.
    fn take(&self, state: &mut Self::State, step: Self::Step) -> Result<(), Self::Violation>;

    /// Judges a state in which the protocol has nothing to do any more.
    fn ended(&self, state: &Self::State) -> Result<(), Self::Violation>;

    /// Says that no end can be reached from a state.
    fn endless(&self) -> Self::Violation;
}

/// What an exploration without a violation has seen.
#[derive(Debug)]
pub struct Explored<S> {
    /// All states, each once.
    pub states: Vec<Rc<S>>,
    /// Number of steps between them.
    pub steps: usize,
    /// Number of states in which nothing was left to do.
    pub ends: usize,
}

/// A shortest way to a violation.
#[derive(Debug)]
pub struct Counterexample<M: Model> {
    pub violation: M::Violation,
    pub steps: Vec<M::Step>,
    /// Number of different states that were seen until then.
    pub states: usize,
}

struct Search<M: Model> {
    states: Vec<Rc<M::State>>,
    numbers: HashMap<Rc<M::State>, u32, FxBuildHasher>,
    /// The state that each was first reached from, and how.
    from: Vec<Option<(u32, M::Step)>>,
}

impl<M: Model> Search<M> {
    fn number(&mut self, state: M::State, from: Option<(u32, M::Step)>) -> u32 {
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        let number = self.states.len() as u32;
        let state = Rc::new(state);
        self.states.push(Rc::clone(&state));
        self.from.push(from);
        self.numbers.insert(state, number);
        assert!(self.states.len() < STATES_MAX, "the bounds of the model are too wide");
        number
    }

    fn counterexample(
        &self,
        violation: M::Violation,
        mut at: u32,
        last: Option<M::Step>,
    ) -> Counterexample<M> {
        let mut steps: Vec<M::Step> = last.into_iter().collect();
        while let Some((before, step)) = self.from[at as usize] {
            steps.push(step);
            at = before;
        }
        steps.reverse();
        Counterexample { violation, steps, states: self.states.len() }
    }
}

/// Explores everything that `model` can reach.
pub fn explore<M: Model>(model: &M) -> Result<Explored<M::State>, Counterexample<M>> {
    let mut search =
        Search::<M> { states: Vec::new(), numbers: HashMap::default(), from: Vec::new() };
    search.number(model.first(), None);
    // Steps of the protocol, without faults: who waits for a fault to be able to end does not end.
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut ends = Vec::new();
    let mut taken = 0;
    let mut steps = Vec::new();
    let mut at = 0;
    while at < search.states.len() {
        let number = at as u32;
        let state = Rc::clone(&search.states[at]);
        steps.clear();
        let mut scratch = Some(M::State::clone(&state));
        model.steps(scratch.as_mut().expect("just made"), &mut steps);
        let own = steps.len();
        if own == 0 {
            model.ended(&state).map_err(|wrong| search.counterexample(wrong, number, None))?;
            ends.push(number);
        }
        model.faults(&state, &mut steps);
        for (index, step) in steps.iter().enumerate() {
            let mut next = scratch.take().unwrap_or_else(|| M::State::clone(&state));
            model
                .take(&mut next, *step)
                .map_err(|wrong| search.counterexample(wrong, number, Some(*step)))?;
            let next = search.number(next, Some((number, *step)));
            if index < own {
                edges.push((number, next));
            }
            taken += 1;
        }
        at += 1;
    }
    if let Some(endless) = cannot_end(search.states.len(), &edges, &ends) {
        return Err(search.counterexample(model.endless(), endless, None));
    }
    Ok(Explored { states: search.states, steps: taken, ends: ends.len() })
}

/// The first state from which no end can be reached. `edges` are (from, to), in the order of `from`.
fn cannot_end(states: usize, edges: &[(u32, u32)], ends: &[u32]) -> Option<u32> {
    let mut can_end = vec![false; states];
    ends.iter().for_each(|end| can_end[*end as usize] = true);
    // Backwards, since most steps lead to a state that was found later.
    let mut changed = true;
    while changed {
        changed = false;
        for (from, to) in edges.iter().rev() {
            if can_end[*to as usize] && !can_end[*from as usize] {
                can_end[*from as usize] = true;
                changed = true;
            }
        }
    }
    can_end.iter().position(|can| !can).map(|state| state as u32)
}

/// A counter that is to reach its end, with a trap beside the way.
struct Counter {
    trap: bool,
    wrong_end: bool,
}

impl Model for Counter {
    type State = u8;
    type Step = u8;
    type Violation = &'static str;

    fn first(&self) -> u8 {
        0
    }
    fn steps(&self, state: &mut u8, steps: &mut Vec<u8>) {
        match state {
            0..3 => steps.push(*state + 1),
            // Round and round.
            7 => steps.push(8),
            8 => steps.push(7),
            _ => {}
        }
    }
    fn faults(&self, state: &u8, steps: &mut Vec<u8>) {
        if *state == 1 && self.trap {
            steps.push(7);
        }
    }
    fn take(&self, state: &mut u8, step: u8) -> Result<(), &'static str> {
        *state = step;
        if step == 9 { Err("nine") } else { Ok(()) }
    }
    fn ended(&self, _: &u8) -> Result<(), &'static str> {
        if self.wrong_end { Err("a wrong end") } else { Ok(()) }
    }
    fn endless(&self) -> &'static str {
        "endless"
    }
}

#[test]
fn the_explorer_sees_every_state_and_finds_wrong_ends_and_endless_ways() {
    let explored = explore(&Counter { trap: false, wrong_end: false }).ok().unwrap();
    assert_eq!((explored.states.len(), explored.steps, explored.ends), (4, 3, 1));
    let trapped = explore(&Counter { trap: true, wrong_end: false }).err().unwrap();
    assert_eq!((trapped.violation, trapped.steps), ("endless", vec![1, 7]));
    let wrong = explore(&Counter { trap: false, wrong_end: true }).err().unwrap();
    assert_eq!((wrong.violation, wrong.steps), ("a wrong end", vec![1, 2, 3]));
}
