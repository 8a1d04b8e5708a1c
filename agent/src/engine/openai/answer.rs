//! A server's answer: its chunks as pieces, and what it used. Neither socket nor clock.
//!
//! The chunks' types are our own: those of `async-openai` know no `reasoning_content`, no token ids, and refuse a finish reason or a missing
//! field that servers do send.

use serde::Deserialize;
use titan_proto::v1::{TokenLogprob, ToolCallDelta, TopLogprob};

use crate::engine::{EngineError, FinishReason, Generate, Piece, Usage};

/// What a stream ends with.
pub(super) const DONE: &str = "[DONE]";
/// Characters of a server's words that an error repeats.
const QUOTED_CHARS: usize = 400;

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<ChunkUsage>,
    error: Option<serde_json::Value>,
    /// vLLM's errors were flat before 0.11: `object` is "error" then.
    object: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<Delta>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
    /// Of vLLM, where `return_token_ids` was asked for.
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
    /// Where llama.cpp, SGLang and older vLLM put what the model thinks.
    reasoning_content: Option<String>,
    /// Where Ollama and newer vLLM do.
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: u32,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Debug, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<Logprob>>,
}

#[derive(Debug, Deserialize)]
struct Logprob {
    #[serde(flatten)]
    token: Token,
    #[serde(default)]
    top_logprobs: Vec<Token>,
}

#[derive(Debug, Deserialize)]
struct Token {
    /// Of llama.cpp.
    id: Option<u32>,
    #[serde(default)]
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: Option<f32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct PromptTokensDetails {
    cached_tokens: Option<u32>,
}

/// An answer in progress.
#[derive(Debug)]
pub(super) struct Answer {
    /// How many alternatives of each token were asked for.
    logprobs: Option<usize>,
    /// Tokens of the answer that were generated elsewhere. The server counts them to its prompt.
    continued_tokens: u32,
    /// Whether the only token was asked for to have the prompt counted.
    silent: bool,
    /// The calls whose id and name have gone out, by index.
    called: Vec<u32>,
    /// Tokens, where the server tells them, and else pieces.
    counted: u32,
    finish_reason: Option<FinishReason>,
    usage: Option<ChunkUsage>,
}

impl Answer {
    pub(super) fn new(request: &Generate) -> Self {
        Self {
            logprobs: request.logprobs.map(|count| count as usize),
            continued_tokens: request.continuation.as_ref().map_or(0, |continuation| continuation.completion_tokens),
            silent: request.sampling.max_tokens == 0,
            called: Vec::new(),
            counted: 0,
            finish_reason: None,
            usage: None,
        }
    }

    /// Takes an event's data, which is not [`DONE`], and gives what there is to pass on.
    pub(super) fn chunk(&mut self, data: &str) -> Result<Option<Piece>, EngineError> {
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
            EngineError::Failed(format!("the server sent what is no piece of an answer ({error}): {}", shortened(data)))
        })?;
        if chunk.error.is_some() || chunk.object.as_deref() == Some("error") {
            return Err(refused_in_stream(data));
        }
        if chunk.usage.is_some() {
            self.usage = chunk.usage;
        }
        let mut piece = Piece::default();
        let mut tokens = Vec::new();
        // One answer was asked for.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                self.finish_reason = Some(finish_reason(&reason)?);
            }
            if let Some(delta) = choice.delta {
                piece.text += &delta.content.unwrap_or_default();
                let reasoning = delta.reasoning_content.filter(|text| !text.is_empty()).or(delta.reasoning);
                piece.reasoning += &reasoning.unwrap_or_default();
                for call in delta.tool_calls.unwrap_or_default() {
                    piece.tool_calls.push(self.call(call));
                }
            }
            tokens.extend(choice.token_ids.unwrap_or_default());
            if let (Some(count), Some(logprobs)) = (self.logprobs, choice.logprobs) {
                piece.logprobs.extend(logprobs.content.unwrap_or_default().into_iter().map(|token| token.of(count)));
            }
        }
        let shows = !piece.text.is_empty() || !piece.reasoning.is_empty() || !piece.tool_calls.is_empty();
        if !shows && tokens.is_empty() && piece.logprobs.is_empty() {
            return Ok(None);
        }
        let known = tokens.len().max(piece.logprobs.len()).max(1);
        self.counted = self.counted.saturating_add(u32::try_from(known).unwrap_or(u32::MAX));
        piece.tokens = tokens.into_iter().collect();
        Ok((!self.silent).then_some(piece))
    }

    /// The end, after [`DONE`].
    pub(super) fn end(&self) -> Result<Usage, EngineError> {
        let Some(mut finish_reason) = self.finish_reason else {
            return Err(EngineError::Failed("the server ended the answer without a finish reason".to_owned()));
        };
        // With a function that has to be called, several servers say "stop" where they mean this.
        if finish_reason == FinishReason::Stop && !self.called.is_empty() {
            finish_reason = FinishReason::ToolCalls;
        }
        // A server that tells no usage leaves the number of pieces, which is what `Continuation::completion_tokens` counts then too.
        let usage = self.usage.unwrap_or(ChunkUsage { completion_tokens: self.counted, ..ChunkUsage::default() });
        let generated = if self.silent { 0 } else { usage.completion_tokens };
        Ok(Usage {
            prompt_tokens: usage.prompt_tokens.saturating_sub(self.continued_tokens),
            cached_tokens: usage.prompt_tokens_details.map_or(0, |details| details.cached_tokens.unwrap_or(0)),
            completion_tokens: generated.saturating_add(self.continued_tokens),
            finish_reason: if self.silent { FinishReason::Length } else { finish_reason },
        })
    }

    fn call(&mut self, call: CallDelta) -> ToolCallDelta {
        let CallDelta { index, id, function } = call;
        let (name, arguments) = function.map(|function| (function.name, function.arguments)).unwrap_or_default();
        let (mut id, mut name) = (id.unwrap_or_default(), name.unwrap_or_default());
        if self.called.contains(&index) {
            // Some servers repeat them in each part.
            (id, name) = (String::new(), String::new());
        } else {
            self.called.push(index);
            if id.is_empty() {
                // Results are told apart by it.
                id = format!("call_{index}");
            }
        }
        ToolCallDelta { index, id, name, arguments: arguments.unwrap_or_default() }
    }
}

impl Logprob {
    /// With at most `count` alternatives: llama.cpp gives none of a token unless it is asked for one at least.
    fn of(self, count: usize) -> TokenLogprob {
        let (token_id, token, logprob) = self.token.parts();
        let top = self.top_logprobs.into_iter().take(count).map(|token| {
            let (token_id, token, logprob) = token.parts();
            TopLogprob { token_id, token, logprob }
        });
        TokenLogprob { token_id, token, logprob, top: top.collect() }
    }
}

impl Token {
    /// Its id, 0 where the server does not tell; its bytes; and its logarithm, of which JSON has no minus infinity.
    fn parts(self) -> (u32, Vec<u8>, f32) {
        let bytes = self.bytes.unwrap_or_else(|| self.token.into_bytes());
        (self.id.unwrap_or(0), bytes, self.logprob.unwrap_or(f32::MIN))
    }
}

fn finish_reason(said: &str) -> Result<FinishReason, EngineError> {
    match said {
        "stop" => Ok(FinishReason::Stop),
        "length" => Ok(FinishReason::Length),
        "tool_calls" | "function_call" => Ok(FinishReason::ToolCalls),
        // `abort`, `content_filter`, `error`: the answer is not what was asked for.
        other => {
            Err(EngineError::Failed(format!("the server broke the answer off: finish reason {:?}", shortened(other))))
        }
    }
}

/// What a server says is wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServerWords {
    /// In its words, shortened.
    pub(super) message: String,
    /// The status that it gives in the body.
    pub(super) code: Option<u64>,
    /// Tokens of the prompt and of the context, where that is what is wrong.
    pub(super) too_long: Option<(usize, usize)>,
}

impl ServerWords {
    /// From a body: `{"error": {"message": …}}`, `{"error": "…"}`, `{"message": …}`, `{"detail": …}`, or any text.
    pub(super) fn read(body: &str) -> Self {
        let Ok(json) = serde_json::from_str::<serde_json::Value>(body) else {
            return Self { message: shortened(body.trim()), ..Self::default() };
        };
        let error = json.get("error").unwrap_or(&json);
        let said = error.as_str().or_else(|| ["message", "detail"].iter().find_map(|key| error.get(key)?.as_str()));
        let number = |key: &str| usize::try_from(error.get(key)?.as_u64()?).ok();
        Self {
            message: shortened(said.unwrap_or(body).trim()),
            code: error.get("code").and_then(serde_json::Value::as_u64),
            too_long: number("n_prompt_tokens").zip(number("n_ctx")),
        }
    }
}

/// An error in the middle of a stream. It names the status that it would have had.
fn refused_in_stream(data: &str) -> EngineError {
    let words = ServerWords::read(data);
    match words.code {
        Some(400..=499) => EngineError::InvalidParameter(format!("the server refuses it: {}", words.message)),
        _ => EngineError::Failed(format!("the server broke the answer off: {}", words.message)),
    }
}

/// The beginning, on one line, so that a megabyte is not sent back.
pub(super) fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;
    use crate::engine::{Continuation, Sampling};

    fn request() -> Generate {
        Generate { logprobs: Some(1), ..Generate::new("m", "hello", Sampling::greedy(8)) }
    }

    fn choice(choice: Value) -> String {
        json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})
            .to_string()
    }

    fn delta(delta: Value) -> String {
        choice(json!({"index": 0, "delta": delta, "finish_reason": null}))
    }

    fn finish(reason: &str) -> String {
        choice(json!({"index": 0, "delta": {}, "finish_reason": reason}))
    }

    fn all(request: &Generate, chunks: &[String]) -> Result<(Vec<Piece>, Usage), EngineError> {
        let mut answer = Answer::new(request);
        let mut pieces = Vec::new();
        for chunk in chunks {
            pieces.extend(answer.chunk(chunk)?);
        }
        Ok((pieces, answer.end()?))
    }

    #[test]
    fn text_and_thoughts_come_apart_and_the_usage_is_the_servers() {
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}});
        let chunks = [
            delta(json!({"role": "assistant", "content": null})),
            delta(json!({"reasoning_content": "hm"})),
            delta(json!({"reasoning": "hm", "content": ""})),
            delta(json!({"content": "a"})),
            finish("length"),
            usage.to_string(),
        ];
        let (pieces, usage) = all(&request(), &chunks).unwrap();
        let texts: Vec<_> = pieces.iter().map(|piece| (piece.text.as_str(), piece.reasoning.as_str())).collect();
        assert_eq!(texts, [("", "hm"), ("", "hm"), ("a", "")]);
        assert_eq!(
            usage,
            Usage { prompt_tokens: 9, cached_tokens: 0, completion_tokens: 4, finish_reason: FinishReason::Length }
        );
    }

    #[test]
    fn calls_keep_their_id_and_name_on_the_first_part_only() {
        let call = |function: Value| {
            delta(json!({"tool_calls": [{"index": 1, "id": "c7", "type": "function", "function": function}]}))
        };
        let chunks = [
            call(json!({"name": "f", "arguments": ""})),
            call(json!({"name": "f", "arguments": "{}"})),
            delta(json!({"tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]})),
            finish("stop"),
        ];
        let (pieces, usage) = all(&request(), &chunks).unwrap();
        let calls: Vec<_> = pieces.iter().flat_map(|piece| &piece.tool_calls).collect();
        let parts: Vec<_> =
            calls.iter().map(|c| (c.index, c.id.as_str(), c.name.as_str(), c.arguments.as_str())).collect();
        assert_eq!(parts, [(1, "c7", "f", ""), (1, "", "", "{}"), (0, "call_0", "g", "{}")]);
        assert_eq!(usage.finish_reason, FinishReason::ToolCalls, "a call was made, whatever the server calls the end");
    }

    #[test]
    fn logprobs_have_bytes_ids_where_known_and_as_many_alternatives_as_asked_for() {
        let token =
            |token: &str, id: Value| json!({"id": id, "token": token, "bytes": token.as_bytes(), "logprob": -0.5});
        let mut first = token("é", json!(7));
        first["top_logprobs"] = json!([token("é", json!(7)), token("e", json!(8))]);
        let second = json!({"token": "x", "bytes": null, "logprob": null, "top_logprobs": []});
        let chunks = [
            choice(json!({"index": 0, "delta": {"content": "é"}, "logprobs": {"content": [first]}})),
            choice(json!({"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [second]}, "token_ids": [5]})),
            finish("stop"),
        ];
        let (pieces, usage) = all(&request(), &chunks).unwrap();
        let logprob = &pieces[0].logprobs[0];
        assert_eq!((logprob.token_id, logprob.token.as_slice(), logprob.logprob), (7, "é".as_bytes(), -0.5));
        assert_eq!(logprob.top.len(), 1);
        assert_eq!(
            (pieces[1].logprobs[0].token.as_slice(), pieces[1].logprobs[0].logprob),
            (b"x".as_slice(), f32::MIN)
        );
        assert_eq!(Vec::from(pieces[1].tokens.clone()), [5]);
        assert_eq!(usage.completion_tokens, 2, "counted, since the server told nothing");
    }

    #[test]
    fn an_end_without_a_reason_and_a_broken_one_are_failures() {
        let ended = all(&request(), &[delta(json!({"content": "a"}))]);
        assert!(matches!(&ended, Err(EngineError::Failed(why)) if why.contains("finish reason")), "{ended:?}");
        for reason in ["abort", "content_filter"] {
            let broken = all(&request(), &[finish(reason)]);
            assert!(matches!(&broken, Err(EngineError::Failed(why)) if why.contains(reason)), "{broken:?}");
        }
    }

    #[test]
    fn an_error_in_the_stream_is_told_in_the_servers_words() {
        let (server, client) = (
            json!({"error": {"message": "out\nof memory", "code": 500}}),
            json!({"error": {"message": "no", "code": 400}}),
        );
        let error = all(&request(), &[server.to_string()]).unwrap_err();
        assert!(matches!(&error, EngineError::Failed(why) if why.ends_with("out of memory")), "{error}");
        let error = all(&request(), &[client.to_string()]).unwrap_err();
        assert!(matches!(&error, EngineError::InvalidParameter(why) if why.ends_with(": no")), "{error}");
        let error = all(&request(), &[json!({"object": "error", "message": "gone"}).to_string()]).unwrap_err();
        assert!(matches!(&error, EngineError::Failed(why) if why.ends_with("gone")), "{error}");
        let error = all(&request(), &["<html>".repeat(1000)]).unwrap_err().to_string();
        assert!(error.contains("no piece of an answer") && error.len() < 1_000, "{error}");
    }

    #[test]
    fn a_continuation_counts_the_whole_answer() {
        let continuation = Continuation {
            text: "a b".into(),
            tokens: vec![],
            completion_tokens: 3,
            reasoning: String::new(),
            tool_calls: vec![],
        };
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 1}}).to_string();
        let chunks = [delta(json!({"content": "c"})), finish("stop"), usage];
        let mut request = Generate { continuation: Some(continuation), ..request() };
        let (pieces, usage) = all(&request, &chunks).unwrap();
        assert_eq!((pieces.len(), usage.prompt_tokens, usage.completion_tokens), (1, 9, 4));
        request.sampling.max_tokens = 0;
        let (pieces, usage) = all(&request, &chunks).unwrap();
        assert!(pieces.is_empty(), "nothing was still to come");
        assert_eq!(
            usage,
            Usage { prompt_tokens: 9, cached_tokens: 0, completion_tokens: 3, finish_reason: FinishReason::Length }
        );
    }

    #[test]
    fn words_are_found_in_every_usual_place() {
        for (body, said) in [
            (r#"{"error":{"message":"a"}}"#, "a"),
            (r#"{"error":"b"}"#, "b"),
            (r#"{"object":"error","message":"c"}"#, "c"),
            (r#"{"detail":"d"}"#, "d"),
            ("plain e\n", "plain e"),
            (r#"{"detail":[1]}"#, r#"{"detail":[1]}"#),
        ] {
            assert_eq!(ServerWords::read(body).message, said);
        }
        let long = r#"{"error":{"code":400,"message":"too long","n_prompt_tokens":9,"n_ctx":8}}"#;
        assert_eq!(ServerWords::read(long).too_long, Some((9, 8)));
    }
}
