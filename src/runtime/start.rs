//! What an attempt starts from: process 0 claims the attempt and decides, the others follow.
//!
//! # Whose a restored checkpoint is
//! | restored                                       | later checkpoints build on it | deleted by            |
//! |------------------------------------------------|-------------------------------|-----------------------|
//! | the job's newest, by itself                    | yes                           | retention             |
//! | one in the job's directory, named by the user  | with [`ClaimMode::Claim`]     | retention             |
//! | one elsewhere, [`ClaimMode::NoClaim`]          | no                            | nobody                |
//! | one elsewhere, [`ClaimMode::Claim`]            | no                            | the job, once it has a checkpoint that stems from it |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{ClaimMode, JobConfig, RestoreFrom};
use crate::format::manifest::Manifest;
use crate::ids::{Attempt, Epoch, Lineage};
use crate::runtime::attempt::{Environment, fatal, random};
use crate::runtime::context::{Failure, FailureKind};
use crate::runtime::describe;
use crate::runtime::restore::Restored;
use crate::storage::job_store::{Claim, JobStore, JobStoreError};
use crate::storage::{Image, absolute, is_same};

/// What every process of an attempt must agree on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) attempt: Attempt,
    pub(crate) lineage: Lineage,
    pub(crate) first_epoch: Epoch,
    /// The checkpoint to restore.
    restore: Option<Origin>,
    /// Whether the user's renames apply: not to what this run has written itself.
    renames: bool,
}

/// Which checkpoint an attempt restores, and whose it is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Origin {
    epoch: Epoch,
    /// Whether it is outside of the job's own directory.
    outside: bool,
    /// Whether later checkpoints may need files of it: it is in the job's own directory and not the user's.
    owned: bool,
}

/// The right to coordinate an attempt: worker 0's.
pub(crate) struct Right {
    pub(crate) claim: Claim,
    /// The checkpoints that were complete before, ascending.
    pub(crate) retained: Vec<Epoch>,
}

/// Claims an attempt and decides what it starts from. `run_began` is the first attempt of this run of the program, if
/// there was one: what a run began with counts until it has a checkpoint of its own.
///
/// # Errors
/// [`Failure`] if storage fails, or if there is nothing to restore that should be there.
pub(crate) fn claim(
    env: &Environment,
    config: &JobConfig,
    run_began: Option<Attempt>,
) -> Result<(Start, Right, Option<Restored>), Failure> {
    let store = JobStore::new(Arc::clone(&env.storage), config.name.clone());
    let failed = |error: &dyn std::error::Error| Failure {
        operator: None,
        what: describe(error),
        kind: if run_began.is_some() { FailureKind::Transient } else { FailureKind::Fatal },
    };
    store
        .prepare(config.max_parallelism, env.clock.unix_ms())
        .map_err(|error| fatal(describe(&error)))?;
    let claim = store.claim().map_err(|error| failed(&error))?;
    let retained: Vec<Epoch> =
        store.valid_epochs().map_err(|error| failed(&error))?.into_iter().collect();
    // A damaged manifest matters only if it is the one to restore.
    let newest_manifest = retained.last().map(|epoch| store.load(*epoch)).transpose();
    let newest = match (&config.restore.from, newest_manifest) {
        (_, Ok(newest)) => newest,
        (RestoreFrom::Newest, Err(error)) => return Err(fatal(describe(&error))),
        (_, Err(_)) => None,
    };
    let own = newest
        .as_ref()
        .is_some_and(|newest| run_began.is_some_and(|began| newest.attempt >= began));
    let named =
        named(&store, config, own, newest.as_ref()).map_err(|error| fatal(describe(&error)))?;
    let restored = match (named, &config.restore.from) {
        (Some(which), _) => Some(find(&store, which).map_err(|error| fatal(describe(&error)))?),
        (None, RestoreFrom::Fresh) if !own => None,
        (None, _) => match newest {
            Some(manifest) => Some((Image::loaded(manifest, store.clone()), false)),
            None => {
                store.newest_of(&claim).map_err(|error| fatal(describe(&error)))?;
                None
            }
        },
    };
    let outside = restored.as_ref().is_some_and(|(_, outside)| *outside);
    let claims = config.restore.claim_mode == ClaimMode::Claim;
    let lineage = lineage(env, &claim, restored.as_ref(), retained.last());
    let origin = |(image, _): &(Image, bool)| {
        let owned = !outside && (named.is_none() || claims);
        Origin { epoch: image.manifest().epoch, outside, owned }
    };
    let start = Start {
        attempt: claim.attempt(),
        lineage,
        first_epoch: claim.first_epoch(),
        restore: restored.as_ref().map(origin),
        renames: !own,
    };
    match (&restored, named) {
        (Some((image, false)), _) => {
            store.protect(&claim, image.manifest()).map_err(|error| fatal(describe(&error)))?;
        }
        (Some((image, true)), Some(which)) if claims => {
            take_over(&store, config, (&claim, lineage), image, which)?;
        }
        _ => {}
    }
    let restored = restored.map(|(image, _)| restored_as(image, config, &start)).transpose()?;
    Ok((start, Right { claim, retained }, restored))
}

/// The history that an attempt continues or begins, by what it restores and whether that is from elsewhere.
fn lineage(
    env: &Environment,
    claim: &Claim,
    restored: Option<&(Image, bool)>,
    newest: Option<&Epoch>,
) -> Lineage {
    match restored {
        // Another directory counts its attempts for itself: its lineages may be those of this one, and its transactions,
        // which sinks know by lineage, attempt and epoch, must not be taken for ours.
        Some((_, true)) => foreign_lineage(env),
        Some((image, false)) if newest == Some(&image.manifest().epoch) => image.manifest().lineage,
        // A restore of what is not the newest is a new history: sinks must not take its transactions for committed.
        _ => claim.lineage(),
    }
}

/// The checkpoint that the user names, if that is what to restore: not once the run has a checkpoint of its own, and not if
/// it was taken over before and the newest one stems from it. Then it is deleted or about to be, and the same command goes
/// on from the newest.
fn named<'a>(
    store: &JobStore,
    config: &'a JobConfig,
    own: bool,
    newest: Option<&Manifest>,
) -> Result<Option<&'a str>, JobStoreError> {
    let RestoreFrom::Checkpoint(which) = &config.restore.from else { return Ok(None) };
    if own {
        return Ok(None);
    }
    let (ClaimMode::Claim, Some(newest)) = (config.restore.claim_mode, newest) else {
        return Ok(Some(which));
    };
    let given = given(which);
    let mut before = store.claimed()?.claimed.into_iter();
    if before.any(|claimed| Path::new(&claimed.given) == given && claimed.lineage == newest.lineage)
    {
        tracing::info!(
            "{which} was taken over before: the job goes on from its own newest checkpoint"
        );
        return Ok(None);
    }
    Ok(Some(which))
}

/// What the user gave, independent of the current directory.
fn given(which: &str) -> PathBuf {
    // Only an empty path has none.
    absolute(Path::new(which)).unwrap_or_default()
}

/// From here on a checkpoint outside of the job's directory is the job's.
fn take_over(
    store: &JobStore,
    config: &JobConfig,
    (claim, lineage): (&Claim, Lineage),
    image: &Image,
    which: &str,
) -> Result<(), Failure> {
    if config.checkpoints.directory.is_none() {
        return Err(fatal(
            "claim mode `claim` needs a checkpoint directory: without one the job's own checkpoints are lost with the \
             process, and what it was restored from is deleted",
        ));
    }
    let given = given(which).display().to_string();
    store
        .take_over(claim, image, &given, lineage)
        .map_err(|error| fatal(format!("{which} cannot be taken over: {}", describe(&error))))?;
    tracing::info!(
        "{which} is taken over: it is deleted when a checkpoint that stems from it is complete"
    );
    Ok(())
}

/// The checkpoint, with the names that the program has for its operators.
fn restored_as(image: Image, config: &JobConfig, start: &Start) -> Result<Restored, Failure> {
    let restored = if start.renames {
        Restored::new(image, &config.restore.renamed).map_err(|error| fatal(describe(&error)))?
    } else {
        Restored::unchanged(image)
    };
    let owned = start.restore.is_some_and(|origin| origin.owned);
    Ok(if owned { restored.owned() } else { restored })
}

/// The checkpoint that the user named, by number or by path, and whether it is outside of the job's directory.
fn find(store: &JobStore, which: &str) -> Result<(Image, bool), JobStoreError> {
    if let Ok(number) = which.parse::<u64>() {
        return Ok((Image::of_job(store.clone(), Epoch(number))?, false));
    }
    let image = Image::open(Path::new(which))?;
    let own = image.job_store().is_some_and(|other| {
        other.job() == store.job() && is_same(other.storage(), store.storage())
    });
    if own {
        let epoch = image.manifest().epoch;
        return Ok((Image::of_job(store.clone(), epoch)?, false));
    }
    Ok((image, true))
}

/// Reads what process 0 has announced that the attempt starts from.
///
/// # Errors
/// [`Failure`] if this process cannot see it.
pub(crate) fn follow(
    env: &Environment,
    config: &JobConfig,
    start: &Start,
) -> Result<Option<Restored>, Failure> {
    let store = JobStore::new(Arc::clone(&env.storage), config.name.clone());
    let restored = match (start.restore, &config.restore.from) {
        (None, _) => return Ok(None),
        (Some(Origin { outside: true, .. }), RestoreFrom::Checkpoint(which)) => {
            Image::open(Path::new(which))
        }
        (Some(Origin { epoch, .. }), _) => Image::of_job(store.clone(), epoch),
    };
    let image = restored.map_err(|error| {
        fatal(format!("{}; all processes must see the same checkpoint directory", describe(&error)))
    })?;
    restored_as(image, config, start).map(Some)
}

pub(crate) fn announce(start: &Start, restored: Option<&Restored>) {
    let (attempt, lineage) = (start.attempt.0, start.lineage.0);
    match restored {
        Some(restored) => tracing::info!(
            attempt,
            lineage,
            epoch = restored.manifest().epoch.0,
            parallelism = restored.manifest().parallelism,
            "restoring checkpoint {}",
            restored.manifest().epoch
        ),
        None => tracing::info!(attempt, lineage, "starting with nothing to restore"),
    }
}

/// A lineage that no directory has, as good as certainly: above all that are numbers of attempts, and drawn.
fn foreign_lineage(env: &Environment) -> Lineage {
    let drawn = env.turns.as_ref().map_or_else(random, |turns| turns.random());
    Lineage((1 << 53) + (drawn * (1_u64 << 53) as f64) as u64)
}
