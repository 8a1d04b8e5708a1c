//! `Debug` of the messages that hold a prompt, a part of an answer or a session token: it shows how much there is, and not what. So no
//! log line and no error can tell, whatever is put into it.

use std::fmt;

use crate::{rest, v1};

impl fmt::Debug for v1::InferenceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InferenceRequest")
            .field("client_id", &self.client_id)
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.len())
            .field("messages", &self.messages.len())
            .field("max_tokens", &self.max_tokens)
            .field("temperature", &self.temperature)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for rest::InferenceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InferenceRequest")
            .field("client_id", &self.client_id)
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.as_ref().map(String::len))
            .field("messages", &self.messages.len())
            .field("max_tokens", &self.max_tokens)
            .field("temperature", &self.temperature)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::OutcomeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeRequest")
            .field("job_id", &self.job_id)
            .field("outcome", &self.outcome)
            .field("agent_id", &self.agent_id)
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for rest::OutcomeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeReport")
            .field("outcome", &self.outcome)
            .field("agent_id", &self.agent_id)
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Prefill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefill")
            .field("job_id", &self.job_id)
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.len())
            .field("messages", &self.messages.len())
            .field("max_tokens", &self.max_tokens)
            .field("temperature", &self.temperature)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::StreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRequest")
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.len())
            .field("messages", &self.messages.len())
            .field("max_tokens", &self.max_tokens)
            .field("temperature", &self.temperature)
            .field("nonce", &self.nonce)
            .field("resume_from", &self.resume_from)
            .field("continuation", &self.continuation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Continuation")
            .field("text_bytes", &self.text.len())
            .field("completion_tokens", &self.completion_tokens)
            .finish_non_exhaustive()
    }
}

macro_rules! sizes_only {
    ($($message:ident { $($shown:ident),* ; $($hidden:ident),* })*) => {$(
        impl fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($shown), &self.$shown))*
                    $(.field(concat!(stringify!($hidden), "_len"), &self.$hidden.len()))*
                    .finish_non_exhaustive()
            }
        }
    )*};
}

sizes_only! {
    Message { role, parts; content, tool_calls, reasoning }
    ContentPart { r#type; text }
    ToolCall { ; id, name, arguments }
    Tool { ; name, description, parameters }
    ToolCallDelta { index; name, arguments }
    StreamResponse { done, created_at, metadata; content, token_ids, tool_calls, reasoning }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "my diary";

    #[test]
    fn no_debug_output_shows_what_a_user_wrote() {
        let call = || v1::ToolCall { id: SECRET.into(), name: SECRET.into(), arguments: SECRET.into() };
        let message =
            || v1::Message { tool_calls: vec![call()], reasoning: SECRET.into(), ..v1::Message::user(SECRET) };
        let texts = || std::collections::HashMap::from([("stop".to_owned(), SECRET.to_owned())]);
        let continuation = v1::Continuation {
            text: SECRET.into(),
            reasoning: SECRET.into(),
            tool_calls: vec![call()],
            ..Default::default()
        };
        let shown = [
            format!("{:?}", v1::InferenceRequest { prompt: SECRET.into(), parameters: texts(), ..Default::default() }),
            format!("{:?}", v1::Prefill { prompt: SECRET.into(), options: texts(), ..Default::default() }),
            format!("{:?}", rest::InferenceRequest { prompt: Some(SECRET.into()), ..Default::default() }),
            format!(
                "{:?}",
                rest::InferenceRequest {
                    messages: vec![message().into(); 8],
                    tools: vec![rest::Tool { description: SECRET.into(), ..Default::default() }],
                    ..Default::default()
                }
            ),
            format!("{:?} {:?}", message(), v1::Tool { description: SECRET.into(), ..Default::default() }),
            format!(
                "{:?}",
                v1::StreamRequest {
                    prompt: SECRET.into(),
                    messages: vec![message()],
                    options: texts(),
                    session_token: SECRET.into(),
                    continuation: Some(continuation),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                v1::HealthAck {
                    prefill: Some(v1::Prefill { prompt: SECRET.into(), ..Default::default() }),
                    ..Default::default()
                }
            ),
        ];
        for text in shown {
            assert!(text.contains("8") && !text.contains("diary"), "{text}");
        }
    }
}
