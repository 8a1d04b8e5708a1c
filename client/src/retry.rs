//! What the client tries again by itself: only what never reached a model. No clock here.

use std::time::Duration;

use tonic::Code;

use crate::{ClientError, CoordinatorError, Processed};

/// Tries of one request with newly asked routes, the first one included.
const MAX_TRIES: u32 = 3;
/// Wait before the second try; twice that before the third. An agent that is full frees a slot about every second, and a restarting
/// coordinator is back in less.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next {
    /// Ask the coordinator at once.
    AskNow,
    /// Wait about so long, then ask the coordinator.
    AskAfter(Duration),
    /// Tell the caller.
    GiveUp,
}

/// What to do about the error of a request that was tried `tries` times with new routes. `kept`: the route was one from an earlier
/// request, and may just have become wrong.
pub(crate) fn next(error: &ClientError, kept: bool, tries: u32) -> Next {
    if error.processed() != Processed::No {
        return Next::GiveUp;
    }
    if kept && route_may_be_wrong(error) {
        return Next::AskNow;
    }
    let again = match error {
        ClientError::Unreachable { .. } | ClientError::Coordinator(CoordinatorError::Unreachable { .. }) => true,
        ClientError::Refused { code, .. } => matches!(code, Code::ResourceExhausted | Code::Unavailable),
        _ => false,
    };
    if again && tries < MAX_TRIES {
        Next::AskAfter(FIRST_WAIT * 2u32.pow(tries.saturating_sub(1)))
    } else {
        Next::GiveUp
    }
}

/// Whether another route may do better: the agent is full, draining, gone, replaced by another one, or does not serve the model any
/// more; or the token is not good any more.
pub(crate) fn route_may_be_wrong(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { code, .. } => matches!(
            code,
            Code::ResourceExhausted
                | Code::Unavailable
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::NotFound
        ),
        ClientError::Unreachable { .. }
        | ClientError::Certificate { .. }
        | ClientError::WireUnavailable { .. }
        | ClientError::AlreadyRan { .. }
        | ClientError::Broken { .. } => true,
        ClientError::Coordinator(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code) -> ClientError {
        ClientError::Refused { agent_id: "a".into(), code, message: String::new(), retry_after: None, reason: None }
    }

    fn broken(processed: Processed) -> ClientError {
        ClientError::Broken { agent_id: "a".into(), code: Code::Unavailable, message: String::new(), processed }
    }

    #[test]
    fn a_kept_route_that_is_refused_is_asked_anew_at_once() {
        for code in [Code::ResourceExhausted, Code::Unavailable, Code::Unauthenticated, Code::NotFound] {
            assert_eq!(next(&refused(code), true, 0), Next::AskNow, "{code:?}");
        }
        assert_eq!(next(&refused(Code::InvalidArgument), true, 0), Next::GiveUp, "no agent takes it");
    }

    #[test]
    fn new_routes_are_tried_a_few_times_with_growing_waits() {
        let full = refused(Code::ResourceExhausted);
        assert_eq!(next(&full, false, 1), Next::AskAfter(FIRST_WAIT));
        assert_eq!(next(&full, false, 2), Next::AskAfter(FIRST_WAIT * 2));
        assert_eq!(next(&full, false, 3), Next::GiveUp);
        assert_eq!(next(&refused(Code::Unauthenticated), false, 1), Next::GiveUp, "a new token is refused again");
    }

    #[test]
    fn what_may_have_reached_a_model_is_never_tried_again() {
        for processed in [Processed::Maybe, Processed::Yes] {
            assert_eq!(next(&broken(processed), true, 0), Next::GiveUp);
            assert_eq!(next(&broken(processed), false, 1), Next::GiveUp);
        }
    }
}
