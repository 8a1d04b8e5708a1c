//! One run of a prompt at one agent, and what has come of its answer so far.

use titan_proto::{
    DEFAULT_MAX_TOKENS,
    v1::{Continuation, StreamRequest, StreamResponse},
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
    text: String,
    token_ids: Vec<u32>,
    /// Messages with text: the number of tokens where their ids are not known.
    pieces: u32,
}

impl Job {
    /// A prompt that no agent has seen.
    pub(crate) fn new(prompt: Prompt) -> Self {
        Self { prompt, nonce: nonce(), so_far: None }
    }

    /// The same for an agent that goes on after what has come.
    pub(crate) fn after(&self, so_far: SoFar) -> Self {
        Self {
            prompt: self.prompt.clone(),
            nonce: nonce(),
            so_far: Some(so_far).filter(|so_far| !so_far.text.is_empty()),
        }
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
            let (text, token_ids) = (so_far.text.clone(), so_far.token_ids.clone());
            request.continuation = Some(Continuation { text, token_ids, completion_tokens, ..Default::default() });
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
    /// Takes note of a message.
    pub(crate) fn add(&mut self, message: &StreamResponse) {
        self.text.push_str(&message.content);
        self.token_ids.extend(&message.token_ids);
        self.pieces += u32::from(!message.content.is_empty());
    }

    /// Tokens that have come, as well as it is known.
    pub(crate) fn tokens(&self) -> u32 {
        if self.token_ids.is_empty() { self.pieces } else { u32::try_from(self.token_ids.len()).unwrap_or(u32::MAX) }
    }

    /// Why no other agent can go on with the answer to `prompt`: PROTOCOL.md §16.
    pub(crate) fn obstacle(&self, prompt: &Prompt) -> Option<String> {
        if self.text.is_empty() || !self.token_ids.is_empty() {
            return None;
        }
        let option = OF_THE_TOKENS.into_iter().find(|name| prompt.options.contains_key(*name))?;
        Some(format!("the agent does not tell which tokens it generates, and the option {option} depends on them"))
    }
}

fn nonce() -> String {
    Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
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
        assert_eq!(unknown.obstacle(&with("top_p")), None);
    }
}
