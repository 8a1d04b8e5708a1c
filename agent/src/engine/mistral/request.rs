//! Raw requests to one mistral.rs engine: token ids in, and every next token chosen here. Its convenient methods are not used: dropping their
//! futures makes the engine panic.

use std::{sync::Arc, time::Duration};

use mistralrs::{
    CustomLogitsProcessor, Model, NormalRequest, Request, RequestMessage, Response, SamplingParams, StopTokens, Tensor,
};
use tokio::sync::mpsc;

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As its processor wanted.
    Finished,
    /// mistral.rs gives a reason.
    Failed(String),
    /// The engine's thread is gone. mistral.rs starts another one.
    Crashed,
}

/// A sequence that the engine has.
pub(super) struct Sequence(mpsc::Receiver<Response>);

/// Room in the channel beyond one chunk a token: the first response may be an error, and a second finish chunk may follow.
const RESPONSE_SLACK: usize = 4;

/// Has the engine compute these tokens and then what `processor` chooses, which ends the sequence with one of `stop`; `max_tokens` is above
/// the number of tokens that it chooses, and only a guard.
pub(super) async fn begin(
    model: &Model,
    tokens: Vec<u32>,
    max_tokens: usize,
    stop: &[u32],
    processor: Arc<dyn CustomLogitsProcessor>,
) -> Result<Sequence, Outcome> {
    // The engine awaits each send, for all its sequences: the channel holds the whole answer.
    let (sender, responses) = mpsc::channel(max_tokens + RESPONSE_SLACK);
    let sampling = SamplingParams {
        temperature: Some(0.0),
        // Never 0 or 1: those give two tokens.
        max_len: Some(max_tokens + RESPONSE_SLACK / 2),
        stop_toks: (!stop.is_empty()).then(|| StopTokens::Ids(stop.to_vec())),
        ..SamplingParams::neutral()
    };
    let messages = RequestMessage::CompletionTokens(tokens);
    let mut request =
        NormalRequest::new_simple(messages, sampling, sender, model.inner().next_request_id(), None, None);
    // Without streaming, a cancelled request runs to its end.
    request.is_streaming = true;
    request.logits_processors = Some(vec![processor]);
    send(model, Request::Normal(Box::new(request))).await?;
    Ok(Sequence(responses))
}

impl Sequence {
    /// Waits for the end.
    pub(super) async fn finish(mut self) -> Outcome {
        loop {
            match self.0.recv().await {
                Some(Response::CompletionChunk(chunk)) => {
                    if chunk.choices.first().is_some_and(|choice| choice.finish_reason.is_some()) {
                        return Outcome::Finished;
                    }
                }
                Some(Response::ValidationError(error) | Response::InternalError(error)) => {
                    return Outcome::Failed(error.to_string());
                }
                Some(Response::CompletionModelError(error, _) | Response::ModelError(error, _)) => {
                    return Outcome::Failed(error);
                }
                Some(_) => return Outcome::Failed("mistral.rs answered with something unexpected".to_owned()),
                None => return Outcome::Crashed,
            }
        }
    }
}

/// An engine that crashed closes its inbox at once, and mistral.rs starts another one when the thread has ended, half a second later.
const REBOOT_TRIES: usize = 60;
const REBOOT_PAUSE: Duration = Duration::from_millis(50);

async fn send(model: &Model, mut request: Request) -> Result<(), Outcome> {
    for _ in 0..REBOOT_TRIES {
        let sender = model.inner().get_sender(None).map_err(|error| Outcome::Failed(error.to_string()))?;
        match sender.send(request).await {
            Ok(()) => return Ok(()),
            Err(mpsc::error::SendError(unsent)) => request = unsent,
        }
        tokio::time::sleep(REBOOT_PAUSE).await;
    }
    Err(Outcome::Crashed)
}

/// Logits of which mistral.rs takes this token.
pub(super) fn only(token: u32, logits: &Tensor) -> mistralrs::Result<Tensor> {
    let length = logits.elem_count();
    let mut values = vec![0f32; length];
    if let Some(chosen) = values.get_mut(token as usize) {
        *chosen = 1.0;
    }
    Tensor::from_vec(values, length, logits.device())
}
