//! The beginning of an answer that another engine made: what its tokens say, and what its reader has got of that.

use mistralrs::Model;

use super::{
    super::{Continuation, EngineError},
    request,
};

/// A continuation that fits together.
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
    pub(super) async fn new(engine: &Model, continuation: &Continuation) -> Result<Self, EngineError> {
        let given = continuation.text.clone();
        let mut tokens = match continuation.tokens.is_empty() {
            true => request::tokenize(engine, given.clone()).await?,
            false => continuation.tokens.clone(),
        };
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
        let skip = beginning(shown(&whole), &given).ok_or_else(|| {
            let what = "the continuation's text is not what its tokens say: the answer cannot be continued";
            EngineError::InvalidParameter(what.to_owned())
        })?;
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
    use super::*;

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
