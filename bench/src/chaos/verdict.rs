//! Whether a stream is what it must be: pure.

use std::time::Duration;

use serde::Serialize;
use titan_agent::engine::synthetic::token_index;

/// What a client heard of one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// In the order in which they came.
    pub(super) texts: Vec<String>,
    pub(super) ended: Ended,
    /// The agents that it came from, in turn.
    pub(super) agents: Vec<String>,
    /// From its last text to its end.
    pub(super) silence: Duration,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client library says that the answer is complete.
    Complete,
    /// The client library gave this kind of error.
    Failed { kind: &'static str, message: String },
    /// It had not when nobody waited any longer.
    #[default]
    NotAtAll,
}

/// What that is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Verdict {
    /// Every token once, in order.
    Whole,
    /// An error, and before it every token once, in order.
    Failed(&'static str),
    /// Anything else.
    Wrong(Fault),
}

/// What is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// Tokens that never came, though the answer went on after them, or was said to be complete.
    pub(super) lost: u32,
    /// Texts that came again, or out of their order.
    pub(super) repeated: u32,
    /// Texts that are not the engine's, tokens after the last one, streams without an end.
    pub(super) what: Option<String>,
}

/// Compares it with the engine's answer of so many tokens.
pub(super) fn verdict(heard: &Heard, tokens: u32) -> Verdict {
    let mut fault = Fault::default();
    let mut next = 0;
    for text in &heard.texts {
        match token_index(text) {
            Some(index) if index >= tokens => {
                fault.what.get_or_insert(format!("token {index} came, of {tokens}"));
            }
            Some(index) if index >= next => {
                fault.lost += index - next;
                next = index + 1;
            }
            Some(_) => fault.repeated += 1,
            None => {
                fault.what.get_or_insert(format!("{text:?} is no token"));
            }
        }
    }
    match &heard.ended {
        Ended::Complete => fault.lost += tokens - next,
        Ended::Failed { .. } => {}
        Ended::NotAtAll => {
            fault.what.get_or_insert(format!("it has no end; {next} tokens came"));
        }
    }
    match &heard.ended {
        _ if fault != Fault::default() => Verdict::Wrong(fault),
        Ended::Failed { kind, .. } => Verdict::Failed(kind),
        _ => Verdict::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: u32 = 50;

    /// A stream as it should be, changed by what could be wrong on its way.
    fn of(change: impl FnOnce(&mut Heard)) -> Verdict {
        let texts = (0..TOKENS).map(|index| format!("{index:08} tok ")).collect();
        let mut heard = Heard { texts, ended: Ended::Complete, ..Heard::default() };
        change(&mut heard);
        verdict(&heard, TOKENS)
    }

    fn broken() -> Ended {
        Ended::Failed { kind: "broken", message: String::new() }
    }

    fn fault(lost: u32, repeated: u32) -> Verdict {
        Verdict::Wrong(Fault { lost, repeated, what: None })
    }

    #[test]
    fn an_exact_stream_is_whole_and_an_exact_beginning_may_end_with_an_error() {
        assert_eq!(of(|_| {}), Verdict::Whole);
        for received in [0, 1, 49, 50] {
            let cut = of(|heard| {
                heard.texts.truncate(received);
                heard.ended = broken();
            });
            assert_eq!(cut, Verdict::Failed("broken"));
        }
    }

    #[test]
    fn a_token_that_is_dropped_anywhere_is_noticed() {
        for index in 0..TOKENS as usize {
            let dropped = of(|heard| drop(heard.texts.remove(index)));
            assert_eq!(dropped, fault(1, 0), "{index}");
        }
        let before_an_error = of(|heard| {
            heard.texts.remove(3);
            heard.ended = broken();
        });
        assert_eq!(before_an_error, fault(1, 0));
        assert_eq!(of(|heard| heard.texts.truncate(20)), fault(30, 0), "an end too early");
        assert_eq!(of(|heard| heard.texts.clear()), fault(50, 0));
    }

    #[test]
    fn a_token_that_comes_again_or_out_of_order_is_noticed() {
        for index in 0..TOKENS as usize {
            let twice = of(|heard| heard.texts.insert(index, heard.texts[index].clone()));
            assert_eq!(twice, fault(0, 1), "{index}");
        }
        assert_eq!(of(|heard| heard.texts.swap(7, 8)), fault(1, 1));
        let resumed_too_early = of(|heard| {
            let again = heard.texts[10..20].to_vec();
            drop(heard.texts.splice(20..20, again));
        });
        assert_eq!(resumed_too_early, fault(0, 10));
    }

    #[test]
    fn what_is_not_the_engines_and_what_never_ends_is_noticed() {
        for change in [
            (|heard| heard.texts.push("00000050 tok ".to_owned())) as fn(&mut Heard),
            |heard| heard.texts.push("?".to_owned()),
            |heard| heard.ended = Ended::NotAtAll,
        ] {
            assert!(matches!(of(change), Verdict::Wrong(Fault { lost: 0, repeated: 0, what: Some(_) })));
        }
    }
}
