//! What each token of a synthetic answer is. Pure, but for the clock that a stamp tells.

use titan_proto::{
    conversation::add_to,
    v1::{TokenLogprob, ToolCall, ToolCallDelta, TopLogprob},
};

use super::{
    super::{Continuation, EngineError, FinishReason, Generate, Piece, ToolChoice, stop::StopFilter},
    stamp::{Stamp, now_ns},
    words::word,
};

/// Tokens of reasoning before an answer, where the request switches reasoning on.
pub const REASONING_TOKENS: u32 = 8;

/// What a token's text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Index,
    Stamp,
    Word,
}

impl Says {
    fn text(self, index: u32) -> String {
        match self {
            Self::Index => format!("{index:08} tok "),
            Self::Stamp => Stamp { index, sent_ns: now_ns() }.text(),
            Self::Word => word(index).to_owned(),
        }
    }
}

/// An answer of which every token is known beforehand.
#[derive(Debug)]
pub(super) struct Answer {
    says: Says,
    /// Tokens that were generated elsewhere.
    pub(super) begun: u32,
    /// Tokens in all.
    pub(super) total: u32,
    /// The first tokens that are reasoning.
    reasoning: u32,
    /// The call that the tokens after these are, without arguments.
    call: Option<ToolCall>,
    logprobs: Option<u32>,
}

/// Where an answer goes on.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Text that the continuation's tokens say and its text does not.
    pub(super) missing: String,
    /// `None` without stop texts.
    pub(super) stops: Option<StopFilter>,
    /// A stop text ended within the continuation's tokens.
    pub(super) stopped: bool,
}

/// What a request says that does not bound its answer.
const AS_LONG_AS_IT_WANTS: u32 = i32::MAX.unsigned_abs();
/// How long this engine's answers are then.
const WANTED_TOKENS: u32 = 256;

impl Answer {
    /// The answer to `request`, and where it goes on if it has begun elsewhere.
    pub(super) fn new(says: Says, request: &Generate) -> Result<(Self, Begun), EngineError> {
        if request.constraint.is_some() {
            let why = "the synthetic engine always says the same: leave response_format and grammar out";
            return Err(EngineError::Unsupported(why.to_owned()));
        }
        let begun = request.continuation.as_ref().map_or(0, |continuation| continuation.completion_tokens);
        let wanted = match request.sampling.max_tokens {
            AS_LONG_AS_IT_WANTS => WANTED_TOKENS,
            bound => bound,
        };
        let total = begun.saturating_add(wanted);
        let name = match &request.tool_choice {
            ToolChoice::Auto | ToolChoice::None => None,
            ToolChoice::Required => request.tools.first().map(|tool| tool.name.clone()),
            ToolChoice::Named(name) => Some(name.clone()),
        };
        // Another one in each turn of a conversation.
        let id = format!("call_{}", request.messages.len());
        let call = name.map(|name| ToolCall { id, name, arguments: String::new() });
        let thinks = request.reasoning.enabled == Some(true);
        let reasoning = if thinks { REASONING_TOKENS.min(total) } else { 0 };
        let answer = Self { says, begun, total, reasoning, call, logprobs: request.logprobs };
        let stops = &request.sampling.stop;
        let stops = if stops.is_empty() { None } else { Some(StopFilter::new(stops)) };
        let begun = match &request.continuation {
            None => Begun { stops, ..Begun::default() },
            Some(continuation) => answer.after(continuation, stops)?,
        };
        Ok((answer, begun))
    }

    /// The token with this index: PROTOCOL.md §18 has the shape of calls.
    pub(super) fn token(&self, index: u32) -> Piece {
        let (text, mut piece) = if index < self.reasoning {
            let text = self.says.text(index);
            (text.clone(), Piece { reasoning: text, ..Piece::default() })
        } else if let Some(call) = &self.call {
            let delta = self.delta(call, index);
            (delta.arguments.clone(), Piece { tool_calls: vec![delta], ..Piece::default() })
        } else {
            let text = self.says.text(index);
            (text.clone(), Piece::from(text))
        };
        piece.tokens = [index].into_iter().collect();
        if let Some(top) = self.logprobs {
            let token = text.into_bytes();
            let itself = TopLogprob { token_id: index, token: token.clone(), logprob: 0.0 };
            let top = if top > 0 { vec![itself] } else { Vec::new() };
            piece.logprobs = vec![TokenLogprob { token_id: index, token, logprob: 0.0, top }];
        }
        piece
    }

    /// The arguments `{"said":"…"}`: the first token opens them, the last one closes them, and those between say what text would say.
    fn delta(&self, call: &ToolCall, index: u32) -> ToolCallDelta {
        let (first, last) = (index == self.reasoning, index + 1 == self.total);
        let arguments = match (first, last) {
            (true, true) => r#"{"said":""}"#.to_owned(),
            (true, false) => r#"{"said":""#.to_owned(),
            (false, true) => r#""}"#.to_owned(),
            (false, false) => escaped(&self.says.text(index)),
        };
        let head = if first { call.clone() } else { ToolCall::default() };
        ToolCallDelta { index: 0, id: head.id, name: head.name, arguments }
    }

    pub(super) fn finish_reason(&self) -> FinishReason {
        if self.call.is_some() && self.total > self.reasoning { FinishReason::ToolCalls } else { FinishReason::Length }
    }

    /// Goes on after `continuation`, if that is the beginning of this answer.
    fn after(&self, continuation: &Continuation, mut stops: Option<StopFilter>) -> Result<Begun, EngineError> {
        // Nobody can say again when each token was sent.
        if self.says == Says::Stamp {
            return Ok(Begun { stops, ..Begun::default() });
        }
        let Continuation { text, tokens, completion_tokens: _, reasoning, tool_calls } = continuation;
        let (mut said, mut thought, mut calls, mut stopped) = (String::new(), String::new(), Vec::new(), false);
        for index in 0..self.begun {
            let piece = self.token(index);
            thought.push_str(&piece.reasoning);
            piece.tool_calls.iter().for_each(|delta| add_to(&mut calls, delta));
            match &mut stops {
                None => said.push_str(&piece.text),
                Some(stops) => {
                    let filtered = stops.push(&piece.text);
                    said.push_str(&filtered.text);
                    stopped |= filtered.stopped;
                }
            }
        }
        let ids_differ = !tokens.is_empty() && !tokens.iter().copied().eq(0..self.begun);
        let missing =
            said.strip_prefix(text.as_str()).filter(|_| !ids_differ && thought == *reasoning && calls == *tool_calls);
        let Some(missing) = missing else {
            let why = "the continuation is not the beginning of this answer: its tokens say something else";
            return Err(EngineError::InvalidParameter(why.to_owned()));
        };
        Ok(Begun { missing: missing.to_owned(), stops, stopped })
    }
}

/// A text as it stands between the quotes of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
