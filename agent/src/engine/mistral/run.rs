//! One generation, from a free place to its last event.

use std::sync::Arc;

use mistralrs::{Model, Response, core::CompletionChunkResponse};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{EngineError, Event, FinishReason, Generate, Piece, TokenStream, Usage, stop::StopFilter},
    continuation::{Begun, Continued, Replay},
    load::Loaded,
    pool::Place,
    request::{self, Input, Running},
    sampler::Sampler,
};

/// Runs in its own task: a caller who goes away must not take a half-asked engine with him. See [`request`].
pub(super) async fn run(
    model: Arc<Loaded>,
    place: Place,
    asked: Generate,
    started: oneshot::Sender<Result<TokenStream, EngineError>>,
) {
    let engine = model.engines[place.engine()].clone();
    match start(&model, &engine, place, &asked).await {
        Ok((generation, stream)) => {
            if started.send(Ok(stream)).is_ok() {
                generation.forward(&engine).await;
            }
        }
        Err(error) => {
            // Nobody waits any more: nothing to tell.
            let _ = started.send(Err(error));
        }
    }
}

async fn start(
    model: &Loaded,
    engine: &Model,
    place: Place,
    asked: &Generate,
) -> Result<(Generation, TokenStream), EngineError> {
    let prompt = model.escape.apply(&asked.messages[0].content);
    let prompt_ids = request::prompt_tokens(engine, &prompt).await?;
    let prompt_tokens = prompt_ids.len();
    let begun = match &asked.continuation {
        Some(continuation) => Some(Begun::new(engine, continuation, &asked.sampling).await?),
        None => None,
    };
    // A beginning that is read is part of what the model gets; one that is replayed, of what it makes.
    let (read, made) = match &begun {
        None => (0, 0),
        Some(Begun::Replayed(replay)) => (0, replay.tokens.len()),
        Some(Begun::Read(continued)) => (continued.tokens.len(), continued.dropped),
    };
    let room = room(prompt_tokens + read, model.context_tokens).ok_or_else(|| EngineError::PromptTooLong {
        model: asked.model.clone(),
        prompt_tokens: prompt_tokens + read,
        context_tokens: model.context_tokens,
    })?;
    let max_tokens = usize::try_from(asked.sampling.max_tokens).unwrap_or(usize::MAX).saturating_add(made).min(room);
    let (input, sent_tokens) = match &begun {
        None => (Input::Prompt { prompt, forced: Vec::new() }, 0),
        Some(Begun::Replayed(replay)) => (Input::Prompt { prompt, forced: replay.tokens.clone() }, replay.tokens.len()),
        Some(Begun::Read(continued)) => {
            (Input::Continued { prompt: prompt_ids, answer: continued.tokens.clone() }, continued.tokens.len())
        }
    };
    let (events, stream) = mpsc::channel(max_tokens + EVENT_SLACK);
    let stop = StopFilter::new(&asked.sampling.stop);
    let sampler = Sampler::new(&asked.sampling, rand::random());
    // With nothing left to generate a token is generated all the same, and thrown away: what is missing of the text comes first.
    let running = request::start(engine, input, prompt_tokens, max_tokens.max(1), sampler, place).await?;
    let (replay, continued) = match begun {
        None => (None, None),
        Some(Begun::Replayed(replay)) => (Some(replay), None),
        Some(Begun::Read(continued)) => (None, Some(continued)),
    };
    let generation = Generation {
        running,
        events,
        stop,
        max_tokens,
        prompt_tokens,
        sent_tokens,
        text: String::new(),
        thinking: false,
        replay,
        continued,
    };
    Ok((generation, stream))
}

/// Room beyond one event a token: what the stop filter held back, the end, an error.
const EVENT_SLACK: usize = 4;

/// Tokens that may be generated after a prompt; `None` where there is no room for one.
fn room(prompt_tokens: usize, context_tokens: usize) -> Option<usize> {
    context_tokens.checked_sub(prompt_tokens).filter(|room| *room > 0)
}

struct Generation {
    running: Running,
    events: mpsc::Sender<Result<Event, EngineError>>,
    stop: StopFilter,
    /// Tokens that are still to come.
    max_tokens: usize,
    prompt_tokens: usize,
    /// Tokens of the answer that went out with a text, or had come with the continuation.
    sent_tokens: usize,
    /// What the engine gave, before the stop filter.
    text: String,
    /// Within the model's reasoning, which mistral.rs takes out of the text.
    thinking: bool,
    /// The answer was begun elsewhere, and its beginning is generated again.
    replay: Option<Replay>,
    /// The answer was begun elsewhere, and its beginning was read.
    continued: Option<Continued>,
}

/// Whether the generation goes on.
enum Step {
    Go,
    End,
}

impl Generation {
    async fn forward(mut self, engine: &Model) {
        if let Step::End = self.begin().await {
            return;
        }
        loop {
            let response = tokio::select! {
                biased;
                // The reader went away: dropping `running` stops the engine at its next token.
                () = self.events.closed() => return,
                response = self.running.responses.recv() => response,
            };
            let step = match response {
                Some(Response::Chunk(chunk)) => self.chunk(chunk).await,
                Some(Response::CompletionChunk(chunk)) => self.completion_chunk(engine, chunk).await,
                Some(Response::ValidationError(error) | Response::InternalError(error)) => {
                    self.fail(error.to_string()).await
                }
                Some(Response::ModelError(error, _)) => self.fail(error).await,
                Some(_) => self.fail("mistral.rs answered with something other than a chunk of text".to_owned()).await,
                None => self.closed(engine).await,
            };
            if matches!(step, Step::End) {
                return;
            }
        }
    }

    /// What the tokens of a continuation say beyond its text.
    async fn begin(&mut self) -> Step {
        let Some(continued) = &self.continued else { return Step::Go };
        self.text.clone_from(&continued.given);
        let missing = continued.text[continued.given.len()..].to_owned();
        match self.pass(&missing).await {
            Step::Go if self.max_tokens == 0 => self.done(FinishReason::Length, None).await,
            step => step,
        }
    }

    /// A chunk of a continued answer. Its text is not used: mistral.rs takes the white space at its beginning away, and knows nothing of a
    /// character that began in the continuation.
    async fn completion_chunk(&mut self, engine: &Model, chunk: CompletionChunkResponse) -> Step {
        if let Step::End = self.catch_up(engine).await {
            return Step::End;
        }
        match chunk.choices.first().and_then(|choice| choice.finish_reason.as_deref()) {
            None => Step::Go,
            Some("stop") => self.done(FinishReason::Stop, None).await,
            Some("length") => self.done(FinishReason::Length, None).await,
            Some(other) => self.fail(format!("it ended with {other:?}")).await,
        }
    }

    /// Passes on what the tokens say beyond the text so far.
    async fn catch_up(&mut self, engine: &Model) -> Step {
        let Some(continued) = &self.continued else { return Step::Go };
        let whole = match request::detokenize(engine, self.running.generated.tokens()).await {
            Ok(whole) => whole,
            Err(error) => return self.fail(error.to_string()).await,
        };
        match continued.visible(&whole).strip_prefix(self.text.as_str()) {
            Some(rest) => {
                let rest = rest.to_owned();
                self.pass(&rest).await
            }
            None => self.fail("its tokens say something else than its text".to_owned()).await,
        }
    }

    async fn chunk(&mut self, chunk: mistralrs::ChatCompletionChunkResponse) -> Step {
        let Some(choice) = chunk.choices.into_iter().next() else { return Step::Go };
        let text = self.assemble(choice.delta.reasoning_content, choice.delta.content);
        if let Step::End = self.pass(&text).await {
            return Step::End;
        }
        // A second finish chunk may follow the first one, so nothing is read after it.
        match choice.finish_reason.as_deref() {
            None => Step::Go,
            Some("stop") => self.done(FinishReason::Stop, chunk.usage).await,
            Some("length") => self.done(FinishReason::Length, chunk.usage).await,
            Some(other) => self.fail(format!("it ended with {other:?}")).await,
        }
    }

    /// Puts reasoning back where the model had it, between its tags.
    fn assemble(&mut self, reasoning: Option<String>, content: Option<String>) -> String {
        let mut text = String::new();
        if let Some(reasoning) = reasoning.filter(|reasoning| !reasoning.is_empty()) {
            if !std::mem::replace(&mut self.thinking, true) {
                text.push_str("<think>");
            }
            text.push_str(&reasoning);
        }
        if let Some(content) = content.filter(|content| !content.is_empty()) {
            if std::mem::replace(&mut self.thinking, false) {
                text.push_str("</think>");
            }
            text.push_str(&content);
        }
        text
    }

    async fn pass(&mut self, text: &str) -> Step {
        self.text.push_str(text);
        let filtered = self.stop.push(text);
        if let Err(error) = self.send_text(filtered.text).await {
            return self.refuse(error).await;
        }
        match filtered.stopped {
            true => self.end(FinishReason::Stop, None).await,
            false => Step::Go,
        }
    }

    /// The engine let go of the sequence without saying why. It does so when the last token ends within a character: then everything since
    /// the last whole character is still to be told. Otherwise it crashed.
    async fn closed(&mut self, engine: &Model) -> Step {
        let tokens = self.running.generated.tokens();
        let begun = self.continued.as_ref().map_or(0, |continued| continued.tokens.len());
        if tokens.len() == begun || !self.running.engine_lives() {
            return self.fail("it crashed; a new request may succeed".to_owned()).await;
        }
        let reason = if tokens.len() - begun >= self.max_tokens { FinishReason::Length } else { FinishReason::Stop };
        if self.continued.is_some() {
            if let Step::End = self.catch_up(engine).await {
                return Step::End;
            }
        } else if let Ok(whole) = request::detokenize(engine, tokens).await {
            let whole = whole.trim_start().trim_end_matches(char::REPLACEMENT_CHARACTER);
            let rest = whole.strip_prefix(self.text.as_str()).unwrap_or_default().to_owned();
            if let Step::End = self.pass(&rest).await {
                return Step::End;
            }
        }
        self.done(reason, None).await
    }

    /// The end, with what the stop filter held back.
    async fn done(&mut self, reason: FinishReason, usage: Option<mistralrs::Usage>) -> Step {
        let rest = std::mem::replace(&mut self.stop, StopFilter::new(&[])).finish();
        match self.send_text(rest).await.and_then(|()| self.replay.as_ref().map_or(Ok(()), Replay::finish)) {
            Ok(()) => self.end(reason, usage).await,
            Err(error) => self.refuse(error).await,
        }
    }

    async fn end(&mut self, finish_reason: FinishReason, usage: Option<mistralrs::Usage>) -> Step {
        // At a stop text the engine has not counted yet; it may be a token ahead of the reader by then, and that token was computed.
        let most = self.max_tokens + self.continued.as_ref().map_or(0, |continued| continued.tokens.len());
        let completion =
            usage.map_or_else(|| self.running.generated.count().min(most), |usage| usage.completion_tokens);
        let usage =
            Usage { prompt_tokens: count(self.prompt_tokens), completion_tokens: count(completion), finish_reason };
        // A reader who went away needs no end.
        let _ = self.events.send(Ok(Event::Done(usage))).await;
        Step::End
    }

    async fn send_text(&mut self, text: String) -> Result<(), EngineError> {
        let text = match &mut self.replay {
            Some(replay) => replay.shown(text)?,
            None => text,
        };
        if !text.is_empty() {
            // The engine may be ahead of the text: a continuation makes up for that.
            let tokens: Vec<u32> = self.running.generated.tokens_from(self.sent_tokens);
            self.sent_tokens += tokens.len();
            let _ = self
                .events
                .send(Ok(Event::Piece(Piece { text, tokens: tokens.into_iter().collect(), ..Piece::default() })))
                .await;
        }
        Ok(())
    }

    async fn refuse(&self, error: EngineError) -> Step {
        let _ = self.events.send(Err(error)).await;
        Step::End
    }

    async fn fail(&self, reason: String) -> Step {
        tracing::error!(reason, "the engine failed");
        let _ = self.events.send(Err(EngineError::Failed(reason))).await;
        Step::End
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn the_context_holds_prompt_and_answer() {
        assert_eq!(room(0, 8192), Some(8192));
        assert_eq!(room(8000, 8192), Some(192));
        assert_eq!(room(8191, 8192), Some(1));
        assert_eq!(room(8192, 8192), None);
        assert_eq!(room(9000, 8192), None);
    }
}
