//! Raw requests to one mistral.rs engine. Its convenient methods are not used: dropping their futures makes the engine panic.

use std::{sync::Arc, time::Duration};

use mistralrs::{
    CustomLogitsProcessor, Model, NormalRequest, Request, RequestLike, RequestMessage, Response, SamplingParams,
    Tensor, TextMessageRole, TextMessages,
    core::{DetokenizationRequest, TokenizationRequest},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{super::EngineError, pool::Place, sampler::Sampler};

/// The answer's tokens so far, those of its continuation first; written by the engine's thread.
#[derive(Debug, Default)]
pub(super) struct Generated(Mutex<Vec<u32>>);

impl Generated {
    /// Tokens chosen so far, the end-of-sequence token included.
    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub(super) fn tokens(&self) -> Vec<u32> {
        self.0.lock().clone()
    }

    /// Those from number `from` on.
    pub(super) fn tokens_from<T: FromIterator<u32>>(&self, from: usize) -> T {
        self.0.lock().iter().skip(from).copied().collect()
    }
}

/// A request that the engine has.
pub(super) struct Running {
    /// Chunks. Dropping it makes the engine stop at its next token.
    pub(super) responses: mpsc::Receiver<Response>,
    pub(super) generated: Arc<Generated>,
    engine: mpsc::Sender<Request>,
}

impl Running {
    /// The engine's thread has not ended since the request was sent. (Its inbox closes before it lets go of the sequences.)
    pub(super) fn engine_lives(&self) -> bool {
        !self.engine.is_closed()
    }
}

/// Room in the channel beyond one chunk a token: the first response may be an error, and a second finish chunk may follow.
const RESPONSE_SLACK: usize = 4;

/// What the model reads before it writes.
pub(super) enum Input {
    /// A user's text, which gets the chat template, and the tokens that its answer begins with, chosen without looking at the logits.
    Prompt { prompt: String, forced: Vec<u32> },
    /// The same as tokens, template included, and the beginning of the answer.
    Continued { prompt: Vec<u32>, answer: Vec<u32> },
}

/// Starts a generation. The engine takes `place` and frees it when it drops the sequence: that is the only moment at which it is known to be idle.
pub(super) async fn start(
    model: &Model,
    input: Input,
    prompt_tokens: usize,
    max_tokens: usize,
    sampler: Sampler,
    place: Place,
) -> Result<Running, EngineError> {
    let (messages, forced, answer) = match input {
        Input::Prompt { prompt, forced } => (chat(&prompt).take_messages(), forced, Vec::new()),
        Input::Continued { mut prompt, answer } => {
            prompt.extend(&answer);
            (RequestMessage::CompletionTokens(prompt), Vec::new(), answer)
        }
    };
    let generated = Arc::new(Generated(Mutex::new(answer)));
    // The engine awaits each send, for all its sequences: the channel holds the whole answer.
    let (sender, responses) = mpsc::channel(max_tokens + RESPONSE_SLACK);
    let sampling = SamplingParams { temperature: Some(0.0), max_len: Some(max_tokens), ..SamplingParams::neutral() };
    let mut request =
        NormalRequest::new_simple(messages, sampling, sender, model.inner().next_request_id(), None, None);
    // Without streaming, a cancelled request runs to its end.
    request.is_streaming = true;
    request.logits_processors =
        Some(vec![Arc::new(Chooser { sampler, forced, prompt_tokens, generated: generated.clone(), _place: place })]);
    let engine = send(model, Request::Normal(Box::new(request))).await?;
    Ok(Running { responses, generated, engine })
}

/// The tokens of the prompt, chat template included.
pub(super) async fn prompt_tokens(model: &Model, prompt: &str) -> Result<Vec<u32>, EngineError> {
    let RequestMessage::Chat { messages, .. } = chat(prompt).take_messages() else {
        return Err(EngineError::Failed("mistral.rs makes no chat of messages".to_owned()));
    };
    let request = move |response| {
        Request::Tokenize(TokenizationRequest {
            // `Either::Left`, without depending on the crate of that type.
            text: Err::<String, _>(messages).into(),
            tools: None,
            add_generation_prompt: true,
            add_special_tokens: true,
            enable_thinking: None,
            reasoning_effort: None,
            response,
        })
    };
    ask(model, request).await
}

/// The tokens of plain text.
pub(super) async fn tokenize(model: &Model, text: String) -> Result<Vec<u32>, EngineError> {
    let request = move |response| {
        Request::Tokenize(TokenizationRequest {
            text: Ok::<_, Vec<_>>(text).into(),
            tools: None,
            add_generation_prompt: false,
            add_special_tokens: false,
            enable_thinking: None,
            reasoning_effort: None,
            response,
        })
    };
    ask(model, request).await
}

/// The text of tokens.
pub(super) async fn detokenize(model: &Model, tokens: Vec<u32>) -> Result<String, EngineError> {
    ask(model, move |response| {
        Request::Detokenize(DetokenizationRequest { tokens, skip_special_tokens: true, response })
    })
    .await
}

fn chat(prompt: &str) -> TextMessages {
    TextMessages::new().add_message(TextMessageRole::User, prompt)
}

async fn ask<T, E>(model: &Model, request: impl FnOnce(mpsc::Sender<Result<T, E>>) -> Request) -> Result<T, EngineError>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let (sender, mut answer) = mpsc::channel(1);
    send(model, request(sender)).await?;
    // In a task of its own: the engine panics if nobody is there to take the answer.
    match tokio::spawn(async move { answer.recv().await }).await {
        Ok(Some(Ok(answer))) => Ok(answer),
        Ok(Some(Err(error))) => Err(EngineError::Failed(error.to_string())),
        Ok(None) | Err(_) => Err(EngineError::Failed("the engine crashed".to_owned())),
    }
}

/// An engine that crashed closes its inbox at once, and mistral.rs starts another one when the thread has ended, half a second later.
const REBOOT_TRIES: usize = 60;
const REBOOT_PAUSE: Duration = Duration::from_millis(50);

async fn send(model: &Model, mut request: Request) -> Result<mpsc::Sender<Request>, EngineError> {
    for _ in 0..REBOOT_TRIES {
        let sender = model.inner().get_sender(None).map_err(|error| EngineError::Failed(error.to_string()))?;
        match sender.send(request).await {
            Ok(()) => return Ok(sender),
            Err(mpsc::error::SendError(unsent)) => request = unsent,
        }
        tokio::time::sleep(REBOOT_PAUSE).await;
    }
    Err(EngineError::Failed("the engine crashed and did not come back".to_owned()))
}

/// Chooses every token in mistral.rs' place, and owns the place of the sequence: the engine holds this as long as the sequence.
struct Chooser {
    sampler: Sampler,
    forced: Vec<u32>,
    prompt_tokens: usize,
    generated: Arc<Generated>,
    _place: Place,
}

impl CustomLogitsProcessor for Chooser {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> mistralrs::Result<Tensor> {
        let mut values: Vec<f32> = logits.to_vec1()?;
        let before = context.get(self.prompt_tokens..).unwrap_or_default();
        let broken = || std::io::Error::other("the model computed no numbers");
        let token = match self.forced.get(before.len()) {
            Some(&token) => token,
            None => self.sampler.next(&mut values, before).ok_or_else(broken)?,
        };
        {
            let mut generated = self.generated.0.lock();
            generated.truncate(before.len());
            generated.push(token);
        }
        // mistral.rs takes the largest: this one.
        values.fill(0.0);
        if let Some(chosen) = values.get_mut(token as usize) {
            *chosen = 1.0;
        }
        let length = values.len();
        Tensor::from_vec(values, length, logits.device())
    }
}
