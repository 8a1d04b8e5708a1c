//! The beginning of an answer that another engine made: what its tokens say, and what its reader has got of that.
//!
//! There are two ways to go on. An answer that the same request gives again is *replayed*: its tokens are taken one by one, as they were
//! generated, so that the numbers the model computes are the same to the last bit, and the text too. That takes as long as it took
//! to generate them. Any other answer has its beginning *read* at once, as the prompt is: that takes a moment, but rounds differently, so that
//! once in a while a token that was almost as likely comes first.

use mistralrs::Model;

use super::{
    super::{Continuation, EngineError, Sampling},
    request,
    sampler::Sampler,
};

/// How an answer goes on.
pub(super) enum Begun {
    Replayed(Replay),
    Read(Continued),
}

/// A beginning that is generated again and not shown.
pub(super) struct Replay {
    pub(super) tokens: Vec<u32>,
    /// What of its reader's text has not been generated again yet.
    hidden: String,
}

impl Begun {
    pub(super) async fn new(engine: &Model, asked: &Continuation, sampling: &Sampling) -> Result<Self, EngineError> {
        let tokens = match asked.tokens.is_empty() {
            true => request::tokenize(engine, asked.text.clone()).await?,
            false => asked.tokens.clone(),
        };
        if Sampler::is_deterministic(sampling) {
            return Ok(Self::Replayed(Replay { tokens, hidden: asked.text.clone() }));
        }
        Continued::new(engine, asked.text.clone(), tokens).await.map(Self::Read)
    }
}

impl Replay {
    /// What of `text`, which was generated now, its reader has not got.
    pub(super) fn shown(&mut self, text: String) -> Result<String, EngineError> {
        let known = text.len().min(self.hidden.len());
        match text.get(..known).filter(|known| self.hidden.starts_with(known)) {
            Some(_) => {
                self.hidden.drain(..known);
                Ok(text[known..].to_owned())
            }
            None => Err(other_text()),
        }
    }

    /// The answer has ended.
    pub(super) fn finish(&self) -> Result<(), EngineError> {
        if self.hidden.is_empty() { Ok(()) } else { Err(other_text()) }
    }
}

fn other_text() -> EngineError {
    let what = "the continuation's text is not what its tokens say: the answer cannot be continued";
    EngineError::InvalidParameter(what.to_owned())
}

/// A beginning that is read.
pub(super) struct Continued {
    /// Its tokens, without those at the end that do not show: an end-of-sequence token, the beginning of a character. They are generated again.
    pub(super) tokens: Vec<u32>,
    /// How many those are.
    pub(super) dropped: usize,
    /// What its reader has got.
    pub(super) given: String,
    /// What its tokens say; begins with `given`.
    pub(super) text: String,
    /// Where `given` begins in the text of all tokens: white space at the beginning of an answer is not shown.
    skip: usize,
}

impl Continued {
    async fn new(engine: &Model, given: String, mut tokens: Vec<u32>) -> Result<Self, EngineError> {
        let all = tokens.len();
        let mut whole = request::detokenize(engine, tokens.clone()).await?;
        while !tokens.is_empty() {
            let shorter = request::detokenize(engine, tokens[..tokens.len() - 1].to_vec()).await?;
            if shown(&shorter) != shown(&whole) {
                break;
            }
            tokens.pop();
            whole = shorter;
        }
        let skip = beginning(shown(&whole), &given).ok_or_else(other_text)?;
        let text = shown(&whole)[skip..].to_owned();
        Ok(Self { dropped: all - tokens.len(), tokens, given, text, skip })
    }

    /// What a reader gets to see of the text of all tokens.
    pub(super) fn visible<'a>(&self, whole: &'a str) -> &'a str {
        shown(whole).get(self.skip..).unwrap_or_default()
    }
}

/// Without what is not a whole character yet.
fn shown(text: &str) -> &str {
    text.trim_end_matches(char::REPLACEMENT_CHARACTER)
}

/// Where `given` begins in `whole`, after white space only.
fn beginning(whole: &str, given: &str) -> Option<usize> {
    let space = whole.len() - whole.trim_start().len();
    let ends = whole.char_indices().map(|(at, _)| at).take_while(|at| *at <= space);
    ends.filter(|at| whole[*at..].starts_with(given)).last()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_replay_hides_what_its_reader_has_got() {
        let mut replay = Replay { tokens: vec![], hidden: "Hello, grüße".to_owned() };
        let shown: String =
            ["Hel", "lo, g", "rü", "ße y", "ou"].map(|text| replay.shown(text.to_owned()).unwrap()).concat();
        assert_eq!(shown, " you");
        assert!(replay.finish().is_ok());

        let mut other = Replay { tokens: vec![], hidden: "Hello".to_owned() };
        assert_eq!(other.shown("He".to_owned()).unwrap(), "");
        assert!(other.finish().is_err(), "it ends before the reader's text does");
        assert!(other.shown("lü".to_owned()).is_err());
    }

    #[test]
    fn a_text_is_found_behind_white_space_only() {
        assert_eq!(beginning("Hello you", "Hello"), Some(0));
        assert_eq!(beginning(" Hello you", "Hello"), Some(1));
        assert_eq!(beginning("\n\nHello", "\nHello"), Some(1));
        assert_eq!(beginning("\n\n", "\n"), Some(1));
        assert_eq!(beginning("Oh Hello", "Hello"), None);
        assert_eq!(beginning("Hel", "Hello"), None);
    }

    #[test]
    fn the_beginning_of_a_character_does_not_show() {
        assert_eq!(shown("a\u{fffd}\u{fffd}"), "a");
    }
}
