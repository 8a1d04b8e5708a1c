//! What agents say of the generations that they run and have run.

use std::collections::HashMap;

use titan_proto::v1::HealthUpdate;

use super::{InputError, MAX_CLAIMS, MAX_CONTEXT_TOKENS, MAX_JOBS, MAX_MODEL_NAME_BYTES, short};
use crate::usage::{Finished, Outcome};

/// What ended there, checked.
pub(crate) fn finished(update: &HealthUpdate) -> Result<Vec<Finished>, InputError> {
    let count = update.finished.len();
    if count > MAX_CLAIMS {
        return Err(InputError::TooMany { what: "finished", count, max: MAX_CLAIMS });
    }
    let tokens = |field, value: i64| match u64::try_from(value) {
        Ok(tokens) if value <= MAX_CONTEXT_TOKENS => Ok(tokens),
        _ => Err(InputError::Range { field, value: value.to_string(), min: 0, max: MAX_CONTEXT_TOKENS }),
    };
    let checked = update.finished.iter().map(|finished| {
        for (field, text) in [
            ("finished.id", &finished.id),
            ("finished.job_id", &finished.job_id),
            ("finished.key", &finished.key),
            ("finished.client_id", &finished.client_id),
            ("finished.model", &finished.model),
        ] {
            if text.len() > MAX_MODEL_NAME_BYTES || text.chars().any(char::is_control) {
                return Err(InputError::Word { field, len: text.len() });
            }
        }
        Ok(Finished {
            id: finished.id.clone(),
            job_id: finished.job_id.clone(),
            key: Some(finished.key.clone()).filter(|key| !key.is_empty()),
            client_id: finished.client_id.clone(),
            model: finished.model.clone(),
            prompt_tokens: tokens("finished.prompt_tokens", finished.prompt_tokens)?,
            cached_tokens: tokens("finished.cached_tokens", finished.cached_tokens)?,
            completion_tokens: tokens("finished.completion_tokens", finished.completion_tokens)?,
            ttft_ms: finished.ttft_ms.try_into().unwrap_or(0),
            duration_ms: finished.duration_ms.try_into().unwrap_or(0),
            outcome: Outcome::parse(&finished.outcome).ok_or_else(|| InputError::Outcome(short(&finished.outcome)))?,
        })
    });
    checked.collect()
}

/// What runs there for each key, checked.
pub(crate) fn running_by_key(update: &HealthUpdate) -> Result<HashMap<String, u32>, InputError> {
    let count = update.running_by_key.len();
    if count > MAX_JOBS as usize {
        return Err(InputError::TooMany { what: "keys in running_by_key", count, max: MAX_JOBS as usize });
    }
    Ok(update.running_by_key.clone())
}
