//! What to generate.

use std::{collections::BTreeMap, time::Duration};

use titan_proto::{
    DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE,
    v1::{self, Message, Reasoning, ResponseFormat, Sampling, StreamRequest, Tool, grammar::Kind},
};

/// What to generate: a prompt, or a conversation. Sampling options beyond these go into `options` by name (`top_p`, `top_k`, `min_p`, `stop`,
/// `seed`, `frequency_penalty`, `presence_penalty`), or into `sampling` as numbers.
///
/// When its agent is lost, an answer goes on at another one ([`Feature::Move`](crate::Feature::Move)) that has the same model, by its digest. With a temperature of 0
/// or a `seed` the whole text is then the one that an undisturbed agent would have given, if both run on the same kind of machine; the other
/// agent generates the beginning again, which takes as long as it took before. With agents that do not tell their tokens, an answer
/// with tool calls, `stop`, `seed`, `frequency_penalty` or `presence_penalty` is not continued: it ends with an error, as it does after three
/// moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// A name that some agent serves.
    pub model: String,
    /// What the model is told, at most [`titan_proto::MAX_PROMPT_BYTES`]. Empty where there are `messages`.
    pub prompt: String,
    /// Where to stop. Defaults to 100, and so does 0.
    pub max_tokens: u32,
    /// 0 is greedy. Defaults to 0.7.
    pub temperature: f32,
    /// Further options by name. Defaults to none.
    pub options: BTreeMap<String, String>,
    /// A conversation, in place of `prompt`. Defaults to none.
    pub messages: Vec<Message>,
    /// Functions that the model may call. Defaults to none.
    pub tools: Vec<Tool>,
    /// Whether it has to call one. Defaults to [`ToolChoice::Auto`].
    pub tool_choice: ToolChoice,
    /// What the text has to be. Defaults to [`Format::Text`].
    pub format: Format,
    /// Give the log probability of each token, and so many alternatives. Defaults to neither.
    pub logprobs: Option<u32>,
    /// Whether and how the model thinks before it answers. Defaults to what its template says.
    pub reasoning: Reasoning,
    /// The same as `options`, as numbers. What stands in both is refused. Defaults to nothing.
    pub sampling: Sampling,
    /// How long the first text may take. Defaults to the client's own ([`Builder::deadline`](crate::Builder::deadline)).
    pub deadline: Option<Duration>,
}

/// Whether the model has to call a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It must not.
    None,
    /// Any of them.
    Required,
    /// The one with this name.
    Named(String),
}

/// What a text has to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that this schema, itself JSON, describes.
    JsonSchema(String),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// A text of this grammar, in the Lark format.
    Lark(String),
}

impl Prompt {
    /// A prompt with the defaults.
    pub fn new(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            prompt: prompt.into(),
            max_tokens: DEFAULT_MAX_TOKENS.unsigned_abs(),
            temperature: DEFAULT_TEMPERATURE,
            options: BTreeMap::new(),
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            format: Format::default(),
            logprobs: None,
            reasoning: Reasoning::default(),
            sampling: Sampling::default(),
            deadline: None,
        }
    }

    /// A conversation with the defaults.
    pub fn conversation(model: impl Into<String>, messages: impl Into<Vec<Message>>) -> Self {
        Self { messages: messages.into(), ..Self::new(model, "") }
    }

    /// What goes to the agent. The same `nonce` in two requests makes them one for it.
    pub(crate) fn request(&self, session_token: &str, nonce: &str) -> StreamRequest {
        let (response_format, grammar) = self.format.on_the_wire();
        StreamRequest {
            session_token: session_token.to_owned(),
            // The token names the model, and the agent reads it there.
            model: String::new(),
            prompt: self.prompt.clone(),
            max_tokens: self.max_tokens_on_the_wire(),
            temperature: self.temperature,
            stream: true,
            options: self.options.clone().into_iter().collect(),
            nonce: nonce.to_owned(),
            compact: true,
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            tool_choice: self.tool_choice.on_the_wire(),
            response_format,
            grammar,
            logprobs: self.logprobs.is_some(),
            top_logprobs: self.logprobs.unwrap_or_default(),
            reasoning: given(&self.reasoning),
            sampling: given(&self.sampling),
            ..StreamRequest::default()
        }
    }

    /// Whether a hint to the agent can say all of it: PROTOCOL.md §17. With another one it would begin something else.
    pub(crate) fn fits_a_hint(&self) -> bool {
        let Self { tool_choice, format, logprobs, reasoning, sampling, .. } = self;
        *tool_choice == ToolChoice::Auto
            && *format == Format::Text
            && logprobs.is_none()
            && given(reasoning).is_none()
            && given(sampling).is_none()
    }

    /// No model writes two thousand million tokens, so the largest number says the same as any above it.
    pub(crate) fn max_tokens_on_the_wire(&self) -> i32 {
        i32::try_from(self.max_tokens).unwrap_or(i32::MAX)
    }
}

impl From<StreamRequest> for Prompt {
    /// What a request asks for. Token, nonce and all that is about the wire are the client's own.
    fn from(request: StreamRequest) -> Self {
        let format = match (request.response_format, request.grammar.and_then(|grammar| grammar.kind)) {
            (_, Some(Kind::Regex(regex))) => Format::Regex(regex),
            (_, Some(Kind::Lark(lark))) => Format::Lark(lark),
            (Some(format), None) => match format.r#type.as_str() {
                "json_object" => Format::JsonObject,
                "json_schema" => Format::JsonSchema(format.json_schema),
                _ => Format::Text,
            },
            (None, None) => Format::Text,
        };
        let tool_choice = match request.tool_choice {
            Some(choice) if !choice.name.is_empty() => ToolChoice::Named(choice.name),
            Some(choice) if choice.mode == "none" => ToolChoice::None,
            Some(choice) if choice.mode == "required" => ToolChoice::Required,
            _ => ToolChoice::Auto,
        };
        Self {
            model: request.model,
            prompt: request.prompt,
            max_tokens: request.max_tokens.unsigned_abs(),
            temperature: request.temperature,
            options: request.options.into_iter().collect(),
            messages: request.messages,
            tools: request.tools,
            tool_choice,
            format,
            logprobs: request.logprobs.then_some(request.top_logprobs),
            reasoning: request.reasoning.unwrap_or_default(),
            sampling: request.sampling.unwrap_or_default(),
            deadline: None,
        }
    }
}

impl ToolChoice {
    fn on_the_wire(&self) -> Option<v1::ToolChoice> {
        let (mode, name) = match self {
            Self::Auto => return None,
            Self::None => ("none", ""),
            Self::Required => ("required", ""),
            Self::Named(name) => ("", name.as_str()),
        };
        Some(v1::ToolChoice { mode: mode.to_owned(), name: name.to_owned() })
    }
}

impl Format {
    fn on_the_wire(&self) -> (Option<ResponseFormat>, Option<v1::Grammar>) {
        let format = |kind: &str, schema: &str| {
            (Some(ResponseFormat { r#type: kind.to_owned(), json_schema: schema.to_owned() }), None)
        };
        let grammar = |kind| (None, Some(v1::Grammar { kind: Some(kind) }));
        match self {
            Self::Text => (None, None),
            Self::JsonObject => format("json_object", ""),
            Self::JsonSchema(schema) => format("json_schema", schema),
            Self::Regex(regex) => grammar(Kind::Regex(regex.clone())),
            Self::Lark(lark) => grammar(Kind::Lark(lark.clone())),
        }
    }
}

/// What differs from the default; an agent that does not know a field never meets it where it says nothing.
fn given<T: Clone + Default + PartialEq>(value: &T) -> Option<T> {
    if *value == T::default() { None } else { Some(value.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_prompt_sends_nothing_that_only_new_agents_know() {
        let sent = Prompt::new("m", "p").request("token", "nonce");
        let plain = StreamRequest {
            session_token: "token".into(),
            prompt: "p".into(),
            max_tokens: 100,
            temperature: 0.7,
            stream: true,
            nonce: "nonce".into(),
            compact: true,
            ..StreamRequest::default()
        };
        assert_eq!(sent, plain);
        assert!(Prompt::new("m", "p").fits_a_hint());
    }

    #[test]
    fn every_field_of_a_conversation_is_sent() {
        let plain = || Prompt::conversation("m", [Message::user("hello")]);
        let sent = |prompt: Prompt| {
            assert!(!prompt.fits_a_hint());
            prompt.request("", "")
        };
        assert_eq!((plain().request("", "").messages.len(), plain().prompt.as_str()), (1, ""));
        assert!(plain().fits_a_hint());
        let choice = |tool_choice| sent(Prompt { tool_choice, ..plain() }).tool_choice.map(|c| (c.mode, c.name));
        assert_eq!(choice(ToolChoice::None), Some(("none".into(), String::new())));
        assert_eq!(choice(ToolChoice::Required), Some(("required".into(), String::new())));
        assert_eq!(choice(ToolChoice::Named("f".into())), Some((String::new(), "f".into())));
        let schema = sent(Prompt { format: Format::JsonSchema("{}".into()), ..plain() }).response_format;
        assert_eq!(schema.map(|f| (f.r#type, f.json_schema)), Some(("json_schema".into(), "{}".into())));
        let object = sent(Prompt { format: Format::JsonObject, ..plain() }).response_format;
        assert_eq!(object.map(|f| f.r#type), Some("json_object".into()));
        for (format, kind) in
            [(Format::Regex("a".into()), Kind::Regex("a".into())), (Format::Lark("b".into()), Kind::Lark("b".into()))]
        {
            assert_eq!(sent(Prompt { format, ..plain() }).grammar.and_then(|g| g.kind), Some(kind));
        }
        let logprobs = sent(Prompt { logprobs: Some(3), ..plain() });
        assert_eq!((logprobs.logprobs, logprobs.top_logprobs), (true, 3));
        let reasoning = Reasoning { enabled: Some(false), ..Reasoning::default() };
        assert_eq!(sent(Prompt { reasoning: reasoning.clone(), ..plain() }).reasoning, Some(reasoning));
        let sampling = Sampling { seed: Some(0), ..Sampling::default() };
        assert_eq!(sent(Prompt { sampling: sampling.clone(), ..plain() }).sampling, Some(sampling));
    }
}
