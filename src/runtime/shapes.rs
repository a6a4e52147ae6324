//! The shapes of the types of a program, each found once in a process.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;

use crate::format::shape::{Shape, trace};

/// By type. Asked at every checkpoint, so that finding one must not be repeated.
static FOUND: Mutex<BTreeMap<TypeId, Arc<Shape>>> = Mutex::new(BTreeMap::new());

/// The shape of `T`: opaque if it cannot be found.
pub(crate) fn shape_of<T: DeserializeOwned + 'static>() -> Arc<Shape> {
    let id = TypeId::of::<T>();
    let found = || FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shape) = found().get(&id) {
        return Arc::clone(shape);
    }
    // Not under the lock: it runs code of the user's.
    let shape = trace::<T>().unwrap_or_else(|untraceable| {
        if untraceable.is_unreadable {
            tracing::warn!("a checkpoint that holds this type cannot be read: {untraceable}");
        } else {
            tracing::debug!("{untraceable}; its name is compared instead");
        }
        Shape::Opaque
    });
    Arc::clone(found().entry(id).or_insert_with(|| Arc::new(shape)))
}
