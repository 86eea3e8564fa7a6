//! The loop over phases, epochs and batches of a fit.

use super::run_dir::Keeper;
use super::session::Session;
use crate::data::Dataset;
use crate::error::{Error, Result};
use std::sync::Arc;
use tracing::info_span;

/// Trains by the plan, with a validation after each epoch, and of a fitted head before the first. Returns whether it was
/// cancelled.
pub(super) fn train_on(session: &mut Session, valid: &Arc<dyn Dataset>, keeper: &mut Keeper) -> Result<bool> {
    session.fit_head()?;
    if session.has_start_to_offer() {
        let evaluation = session.validate(valid, None)?;
        session.offer_start(&evaluation)?;
    }
    while session.next_phase()? {
        let _phase = session.phase_span().entered();
        if keeper.after(session)? {
            return Ok(true);
        }
        let features = session.valid_features(valid)?;
        while session.next_epoch()? {
            let _epoch = info_span!("epoch", epoch = session.epoch()).entered();
            if steps(session, keeper)? {
                return Ok(true);
            }
            let evaluation = session.validate(valid, features.as_ref())?;
            if let Some(averages) = session.validate_averages(valid, features.as_ref())? {
                session.offer_averages(&averages)?;
            }
            session.end_epoch(&evaluation)?;
            if keeper.after(session)? {
                return Ok(true);
            }
        }
    }
    keeper.end(session)?;
    Ok(false)
}

/// The steps of an epoch that has begun, up to its end. Returns whether the run was cancelled.
pub(super) fn steps(session: &mut Session, keeper: &mut Keeper) -> Result<bool> {
    while let Some(batch) = session.next_batch().map_err(|error| keeper.ended_by(error, session))? {
        session.step(&batch).map_err(|error| keeper.failed(error, session))?;
        if keeper.after(session)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses validation data of other classes.
pub(super) fn same_classes(train: &impl Dataset, valid: &impl Dataset) -> Result<()> {
    if valid.is_empty() {
        return Err(Error::invalid("validation data", "is empty; use `split` to hold out samples"));
    }
    let (a, b) = (train.classes(), valid.classes());
    if a == b {
        return Ok(());
    }
    let lacking = |of: &[String], from: &[String]| -> Vec<String> {
        of.iter().filter(|class| !from.contains(class)).take(20).cloned().collect()
    };
    let (new, absent) = (lacking(b, a), lacking(a, b));
    let problem = if !new.is_empty() {
        format!("has classes that the training data lacks: {}", new.join(", "))
    } else if !absent.is_empty() {
        format!("lacks classes of the training data: {}; open both with the same labels", absent.join(", "))
    } else {
        "has the training data's classes in another order; open both with the same labels".into()
    };
    Err(Error::invalid("validation data", problem))
}
