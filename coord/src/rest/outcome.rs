//! `POST /api/v1/jobs/{job_id}/outcome`: what a client met at the agent that it was sent to.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, State},
};
use http::{HeaderMap, StatusCode, request::Parts};
use titan_proto::rest::OutcomeReport;

use super::{body, error::ApiError};
use crate::{
    caller::Asker,
    outcomes::{OutcomeError, Report},
    routing::Dispatcher,
};

pub(super) async fn report(
    State(dispatcher): State<Arc<Dispatcher>>,
    Reporter(asker): Reporter,
    Path(job_id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let report: OutcomeReport = serde_json::from_slice(&body::read(&headers, body).await?)
        .map_err(|error| ApiError::invalid_json(format!("not an outcome: {error}")))?;
    let report = Report {
        job_id: &job_id,
        agent_id: &report.agent_id,
        session_token: &report.session_token,
        outcome: report.outcome,
        wire: report.wire.as_deref().unwrap_or_default(),
        message: report.message.as_deref().unwrap_or_default(),
    };
    dispatcher.report_outcome(&report, &asker)?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<OutcomeError> for ApiError {
    fn from(error: OutcomeError) -> Self {
        let status = match &error {
            OutcomeError::Token(refused) if refused.is_permission() => StatusCode::FORBIDDEN,
            OutcomeError::Token(_) => StatusCode::UNAUTHORIZED,
            OutcomeError::OtherJob { .. } => StatusCode::FORBIDDEN,
            OutcomeError::Reported { .. } => StatusCode::CONFLICT,
            OutcomeError::Invalid { .. } => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code_word(), error.to_string())
    }
}

/// Whoever shows no good key is refused, where one is asked for.
impl FromRequestParts<Arc<Dispatcher>> for Asker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, dispatcher: &Arc<Dispatcher>) -> Result<Self, ApiError> {
        Ok(Self::of(&dispatcher.access, &parts.headers, &parts.extensions)?)
    }
}

/// Whoever reports: the session token says that it may.
pub(super) struct Reporter(Asker);

impl FromRequestParts<Arc<Dispatcher>> for Reporter {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, dispatcher: &Arc<Dispatcher>) -> Result<Self, Infallible> {
        Ok(Self(Asker::without_key(&dispatcher.access, &parts.headers, &parts.extensions)))
    }
}
