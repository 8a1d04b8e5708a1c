//! One run of a prompt at one agent, and what has come of its answer so far.

use titan_proto::{
    DEFAULT_MAX_TOKENS, conversation,
    v1::{Continuation, StreamRequest, StreamResponse, ToolCall},
};
use uuid::Uuid;

use crate::{Feature, Prompt, features::Features};

/// Options that depend on the tokens so far, or on how often a random number was drawn.
const OF_THE_TOKENS: [&str; 4] = ["stop", "seed", "frequency_penalty", "presence_penalty"];

/// What is asked of one agent, under one name.
pub(crate) struct Job {
    pub(crate) prompt: Prompt,
    /// The same in every try: no agent runs it twice with one token.
    pub(crate) nonce: String,
    /// What another agent has generated of the answer.
    so_far: Option<SoFar>,
}

/// What has come of an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct SoFar {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    token_ids: Vec<u32>,
    /// Messages with anything to see: the number of tokens where their ids are not known.
    pieces: u32,
    /// Of the model that it began with; empty where that is not known.
    pub(crate) model_digest: String,
}

impl Job {
    /// A prompt that no agent has seen.
    pub(crate) fn new(prompt: Prompt) -> Self {
        Self { prompt, nonce: nonce(), so_far: None }
    }

    /// The same for an agent that goes on after what has come.
    pub(crate) fn after(&self, so_far: SoFar) -> Self {
        Self { prompt: self.prompt.clone(), nonce: nonce(), so_far: Some(so_far).filter(SoFar::has_come) }
    }

    /// What goes to the agent.
    pub(crate) fn request(&self, session_token: &str, features: Features) -> StreamRequest {
        let mut request = self.prompt.request(session_token, &self.nonce);
        request.resumable = features.has(Feature::Resume);
        request.want_token_ids = features.has(Feature::Move);
        if let Some(so_far) = &self.so_far {
            let wanted = match request.max_tokens {
                0 => DEFAULT_MAX_TOKENS,
                wanted => wanted,
            };
            let completion_tokens = so_far.tokens();
            // 0 is the default no longer: PROTOCOL.md §16.
            request.max_tokens = wanted.saturating_sub_unsigned(completion_tokens).max(0);
            request.continuation = Some(Continuation {
                text: so_far.text.clone(),
                token_ids: so_far.token_ids.clone(),
                completion_tokens,
                reasoning: so_far.reasoning.clone(),
                tool_calls: so_far.tool_calls.clone(),
            });
            request.model_digest = so_far.model_digest.clone();
        }
        request
    }

    /// The request that continues its answer from message number `from` on.
    pub(crate) fn resumption(&self, session_token: &str, from: u64) -> StreamRequest {
        let (session_token, nonce) = (session_token.to_owned(), self.nonce.clone());
        StreamRequest { session_token, nonce, resume_from: Some(from), ..StreamRequest::default() }
    }
}

impl SoFar {
    /// Nothing, of a model with this digest.
    pub(crate) fn of(model_digest: &str) -> Self {
        Self { model_digest: model_digest.to_owned(), ..Self::default() }
    }

    /// Takes note of a message.
    pub(crate) fn add(&mut self, message: &StreamResponse) {
        self.text.push_str(&message.content);
        self.reasoning.push_str(&message.reasoning);
        message.tool_calls.iter().for_each(|delta| conversation::add_to(&mut self.tool_calls, delta));
        self.token_ids.extend(&message.token_ids);
        self.pieces += u32::from(is_seen(message));
    }

    /// Whether its reader has seen anything of it, text, reasoning or a call. Otherwise it begins anew elsewhere.
    pub(crate) fn has_come(&self) -> bool {
        self.pieces > 0
    }

    /// Tokens that have come, as well as it is known.
    pub(crate) fn tokens(&self) -> u32 {
        if self.token_ids.is_empty() { self.pieces } else { u32::try_from(self.token_ids.len()).unwrap_or(u32::MAX) }
    }

    /// Why no other agent can go on with the answer to `prompt`: PROTOCOL.md §16.
    pub(crate) fn obstacle(&self, prompt: &Prompt) -> Option<String> {
        if !self.has_come() || !self.token_ids.is_empty() {
            return None;
        }
        let sampling = &prompt.sampling;
        let typed = [
            !sampling.stop.is_empty(),
            sampling.seed.is_some(),
            sampling.frequency_penalty.is_some(),
            sampling.presence_penalty.is_some(),
        ];
        let option =
            OF_THE_TOKENS.into_iter().zip(typed).find(|(name, typed)| *typed || prompt.options.contains_key(*name));
        let dependent = match option {
            Some((name, _)) => format!("the option {name} depends"),
            None if !self.tool_calls.is_empty() => "the rest of a tool call depends".to_owned(),
            None => return None,
        };
        Some(format!("the agent does not tell which tokens it generates, and {dependent} on them"))
    }
}

/// Whether a message has anything to see.
pub(crate) fn is_seen(message: &StreamResponse) -> bool {
    !(message.content.is_empty() && message.reasoning.is_empty() && message.tool_calls.is_empty())
}

fn nonce() -> String {
    Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use titan_proto::v1::{Sampling, ToolCallDelta};

    use super::*;

    fn message(content: &str, token_ids: &[u32]) -> StreamResponse {
        StreamResponse { content: content.to_owned(), token_ids: token_ids.to_vec(), ..StreamResponse::default() }
    }

    fn request(prompt: Prompt, messages: &[StreamResponse]) -> StreamRequest {
        let mut so_far = SoFar::default();
        messages.iter().for_each(|message| so_far.add(message));
        let job = Job::new(prompt);
        let continued = job.after(so_far);
        assert_ne!(continued.nonce, job.nonce, "another run");
        continued.request("token", Features::default())
    }

    #[test]
    fn what_came_goes_along_and_is_taken_from_what_is_wanted() {
        let prompt = Prompt { max_tokens: 10, ..Prompt::new("m", "p") };
        let sent = request(prompt.clone(), &[message("a", &[1]), message("bc", &[2, 3]), message("", &[])]);
        assert_eq!((sent.max_tokens, sent.prompt.as_str()), (7, "p"));
        let expected =
            Continuation { text: "abc".into(), token_ids: vec![1, 2, 3], completion_tokens: 3, ..Default::default() };
        assert_eq!(sent.continuation, Some(expected));

        let unknown = request(prompt.clone(), &[message("a", &[]), message("b", &[])]);
        assert_eq!((unknown.max_tokens, unknown.continuation.map(|c| c.completion_tokens)), (8, Some(2)));

        let all = request(Prompt { max_tokens: 2, ..prompt.clone() }, &[message("a", &[1]), message("b", &[2])]);
        assert_eq!(all.max_tokens, 0);
        let default = request(Prompt { max_tokens: 0, ..prompt.clone() }, &[message("a", &[1])]);
        assert_eq!(default.max_tokens, 99);

        let nothing = request(prompt, &[]);
        assert_eq!((nothing.max_tokens, nothing.continuation), (10, None), "it begins anew");
    }

    #[test]
    fn reasoning_and_half_a_call_go_along_with_the_digest() {
        let call = |id: &str, arguments: &str| ToolCallDelta {
            index: 0,
            id: id.into(),
            name: if id.is_empty() { String::new() } else { "f".into() },
            arguments: arguments.into(),
        };
        let messages = [
            StreamResponse { reasoning: "hm".into(), token_ids: vec![1], ..StreamResponse::default() },
            StreamResponse { tool_calls: vec![call("c", "{")], token_ids: vec![2], ..StreamResponse::default() },
            StreamResponse { tool_calls: vec![call("", "\"a\"")], token_ids: vec![3], ..StreamResponse::default() },
        ];
        let of = |count: usize| {
            let mut so_far = SoFar::of("d1");
            messages[..count].iter().for_each(|message| so_far.add(message));
            Job::new(Prompt::new("m", "p")).after(so_far).request("token", Features::default())
        };
        assert_eq!((of(0).continuation, of(0).model_digest.as_str()), (None, ""), "any model may begin anew");
        let thought = of(1);
        assert_eq!(thought.continuation.map(|c| (c.reasoning, c.completion_tokens)), Some(("hm".into(), 1)));
        assert_eq!(thought.model_digest, "d1");
        let calls = of(3).continuation.map(|c| c.tool_calls).unwrap_or_default();
        assert_eq!(calls, [ToolCall { id: "c".into(), name: "f".into(), arguments: "{\"a\"".into() }]);
    }

    #[test]
    fn tokens_that_show_nothing_are_no_beginning() {
        let mut so_far = SoFar::default();
        so_far.add(&message("", &[1]));
        assert!(!so_far.has_come());
        let job = Job::new(Prompt::new("m", "p")).after(so_far);
        assert_eq!(job.request("token", Features::default()).continuation, None);
    }

    #[test]
    fn without_token_ids_some_options_cannot_be_honoured() {
        let with = |option: &str| {
            let mut prompt = Prompt::new("m", "p");
            prompt.options.insert(option.to_owned(), "1".to_owned());
            prompt
        };
        let (mut unknown, mut known) = (SoFar::default(), SoFar::default());
        assert_eq!(unknown.obstacle(&with("seed")), None, "nothing has come");
        unknown.add(&message("a", &[]));
        known.add(&message("a", &[1]));
        for option in OF_THE_TOKENS {
            assert!(unknown.obstacle(&with(option)).is_some_and(|why| why.contains(option)));
            assert_eq!(known.obstacle(&with(option)), None);
        }
        let typed = Prompt { sampling: Sampling { seed: Some(1), ..Sampling::default() }, ..Prompt::new("m", "p") };
        assert!(unknown.obstacle(&typed).is_some_and(|why| why.contains("seed")));
        let mut calling = unknown.clone();
        calling.add(&StreamResponse { tool_calls: vec![ToolCallDelta::default()], ..StreamResponse::default() });
        assert!(calling.obstacle(&Prompt::new("m", "p")).is_some_and(|why| why.contains("tool call")));
        assert_eq!(unknown.obstacle(&with("top_p")), None);
    }
}
