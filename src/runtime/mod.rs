//! Timely glue: the operators that carry out the protocols' effects, and the driver that steps a worker.

use std::cell::RefCell;
use std::rc::Rc;

pub(crate) mod assign;
pub mod async_function;
pub(crate) mod async_io;
pub(crate) mod attempt;
pub(crate) mod backend;
pub(crate) mod batch;
pub(crate) mod board;
pub(crate) mod chain;
pub(crate) mod channel;
pub(crate) mod channel_log;
pub(crate) mod clock;
pub(crate) mod context;
pub(crate) mod control;
pub(crate) mod coordination;
pub(crate) mod counters;
pub(crate) mod driver;
pub(crate) mod due;
pub mod either;
pub(crate) mod event_clock;
pub mod event_time;
pub(crate) mod executor;
#[cfg(feature = "rocksdb")]
pub(crate) mod instances;
pub mod keyed;
pub mod keyed_timers;
pub mod kinds;
pub(crate) mod layers;
pub(crate) mod ledger;
pub mod lifetime;
pub(crate) mod mailbox;
pub mod maps;
pub(crate) mod migration;
pub(crate) mod native_restore;
pub(crate) mod natives;
pub(crate) mod operator;
pub mod operator_state;
pub(crate) mod outgoing;
pub(crate) mod pace;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod restore;
pub(crate) mod router;
pub(crate) mod savepoint;
pub mod scheduled;
pub(crate) mod shapes;
pub(crate) mod sink;
pub(crate) mod snapshot;
pub(crate) mod source;
pub(crate) mod start;
pub(crate) mod stateless;
pub mod states;
#[cfg(test)]
mod tests;
pub mod time;
pub mod timed;
pub(crate) mod timers;

pub(crate) use crate::storage::describe;

thread_local! {
    /// The operator that runs on this thread now, for the message of a panic.
    static CURRENT: RefCell<Option<Rc<str>>> = const { RefCell::new(None) };
}

/// The name of an operator, to be entered whenever it runs.
#[derive(Clone)]
pub(crate) struct OperatorScope(Rc<str>);

/// Makes the scope of an operator.
pub(crate) fn scope_name(name: &str) -> OperatorScope {
    OperatorScope(name.into())
}

impl OperatorScope {
    pub(crate) fn enter(&self) -> Entered {
        CURRENT.with(|current| *current.borrow_mut() = Some(Rc::clone(&self.0)));
        Entered
    }
}

/// The operator runs while this lives. A panic leaves the name in place, so that the catcher finds it.
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            CURRENT.with(|current| *current.borrow_mut() = None);
        }
    }
}

/// Takes the name of the operator that ran when this thread panicked.
pub(crate) fn take_current_operator() -> Option<String> {
    CURRENT.with(|current| current.borrow_mut().take()).map(|name| name.to_string())
}

/// The name of the operator that runs on this thread now.
pub(crate) fn current_operator() -> Option<String> {
    // A panic may come while the name is being set.
    CURRENT.with(|current| current.try_borrow().ok()?.as_ref().map(ToString::to_string))
}
