//! `POST /v1/completions`, the older interface: a prompt instead of messages. The prompt is one message of a user, and the model's template is applied to
//! it as to any other. Without `max_tokens` the text is as long as the model wants, not 16 tokens.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};
use titan_proto::v1::{StreamRequest, StreamResponse, TokenLogprob};

use crate::{
    backend::{Backend, Caller},
    chat::{Options, stream_options},
    error::ApiError,
    fields::Fields,
    generation::{Used, Whole, answer, end_chunk, format, id, push_json, sampling, set_format, unix_seconds},
    router::{Settings, with_ignored},
    sse::Encoder,
};

/// The most alternatives that this interface gives.
const MAX_LOGPROBS: i64 = 5;
const HARMLESS: [&str; 3] = ["user", "skip_special_tokens", "add_special_tokens"];

#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) request: StreamRequest,
    options: Options,
    pub(crate) ignored: Vec<String>,
}

pub(crate) fn read(mut fields: Fields) -> Result<CompletionRequest, ApiError> {
    let mut request = StreamRequest {
        model: fields.required_text("model")?,
        prompt: prompt(&mut fields)?,
        ..StreamRequest::default()
    };
    request.compact = true;
    sampling(&mut fields, &["max_tokens"], &mut request)?;
    if let Some(given) = fields.object("response_format")? {
        set_format(&mut request, "response_format", format(given, true)?)?;
    }
    if let Some(top) = fields.integer("logprobs", 0, MAX_LOGPROBS)? {
        request.logprobs = true;
        request.top_logprobs = u32::try_from(top).unwrap_or(0);
    }
    let mut options = stream_options(&mut fields)?;
    options.logprobs = request.logprobs;
    fields.refuse("suffix", &[json!("")], "leave it out")?;
    fields.refuse("echo", &[json!(false)], "put the prompt before the text yourself")?;
    fields.refuse("best_of", &[json!(1)], "send the request several times")?;
    fields.refuse("prompt_logprobs", &[], "leave it out")?;
    fields.skip(&HARMLESS);
    Ok(CompletionRequest { request, options, ignored: fields.left() })
}

fn prompt(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.take("prompt") {
        None => Err(fields.missing("prompt")),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(mut texts)) if texts.len() == 1 && texts[0].is_string() => match texts.pop() {
            Some(Value::String(text)) => Ok(text),
            _ => Err(fields.missing("prompt")),
        },
        Some(_) => Err(ApiError::unsupported(
            "prompt",
            "prompt has to be one string: send several prompts as several requests, and tokens as their text",
        )),
    }
}

pub(crate) async fn create<B: Backend>(
    backend: &Arc<B>,
    settings: &Settings,
    caller: &Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let CompletionRequest { request, options, ignored } = read(fields)?;
    let model = request.model.clone();
    let chunks = Chunks::new(&model, options);
    let json = |whole: Whole| {
        let logprobs = options.logprobs.then(|| legacy_logprobs(&whole.logprobs, &mut 0));
        json!({
            "id": id("cmpl-"),
            "object": "text_completion",
            "created": unix_seconds(),
            "model": model,
            "choices": [{"index": 0, "text": whole.content, "logprobs": logprobs, "finish_reason": whole.finish_reason}],
            "usage": whole.used.json(),
        })
    };
    let answered = answer((&**backend, caller, settings), request, options.stream, chunks, json).await?;
    Ok(with_ignored(answered, &ignored))
}

/// The probabilities as this interface has them. `offset`: characters before them, and afterwards behind them.
fn legacy_logprobs(tokens: &[TokenLogprob], offset: &mut usize) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let offsets: Vec<usize> = tokens
        .iter()
        .map(|token| {
            let at = *offset;
            *offset += text(&token.token).chars().count();
            at
        })
        .collect();
    let top = |token: &TokenLogprob| -> Value {
        token
            .top
            .iter()
            .map(|top| (text(&top.token), Value::from(top.logprob)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    json!({
        "tokens": tokens.iter().map(|token| text(&token.token)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

struct Chunks {
    head: Vec<u8>,
    options: Options,
    offset: usize,
}

impl Chunks {
    fn new(model: &str, options: Options) -> Self {
        let mut head = b"data: {\"id\":\"".to_vec();
        head.extend_from_slice(id("cmpl-").as_bytes());
        head.extend_from_slice(b"\",\"object\":\"text_completion\",\"created\":");
        head.extend_from_slice(unix_seconds().to_string().as_bytes());
        head.extend_from_slice(b",\"model\":");
        push_json(&mut head, model);
        head.extend_from_slice(b",\"choices\":[");
        Self { head, options, offset: 0 }
    }

    fn chunk(&self, out: &mut Vec<u8>, text: &str, logprobs: &Value, finish: Option<&str>) {
        let start = out.len();
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":0,\"text\":");
        push_json(out, text);
        out.extend_from_slice(b",\"logprobs\":");
        push_json(out, logprobs);
        out.extend_from_slice(b",\"finish_reason\":");
        push_json(out, &finish);
        out.extend_from_slice(b"}]");
        end_chunk(out, start, self.options.include_usage, self.options.obfuscate && finish.is_none());
    }
}

impl Encoder for Chunks {
    fn message(&mut self, message: StreamResponse, out: &mut Vec<u8>) {
        let logprobs = match self.options.logprobs && !message.logprobs.is_empty() {
            true => legacy_logprobs(&message.logprobs, &mut self.offset),
            false => Value::Null,
        };
        if !message.content.is_empty() || !logprobs.is_null() {
            self.chunk(out, &message.content, &logprobs, None);
        }
        if message.done {
            self.chunk(out, "", &Value::Null, Some(&message.finish_reason));
            if self.options.include_usage {
                out.extend_from_slice(&self.head);
                out.extend_from_slice(b"],\"usage\":");
                push_json(out, &Used::of(&message).json());
                out.extend_from_slice(b"}\n\n");
            }
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
    }
}
