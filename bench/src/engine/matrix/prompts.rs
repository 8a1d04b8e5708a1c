//! Prompts of a length that is asked for, pure: no two of them begin alike, so that no engine's cache helps where it is not meant to.

use titan_proto::v1::Message;

use super::message;

/// Common words, which take one token each in most vocabularies.
const WORDS: [&str; 24] = [
    "the", "old", "ship", "came", "home", "from", "sea", "and", "people", "went", "down", "to", "see", "it", "with",
    "their", "children", "who", "had", "never", "been", "so", "far", "away",
];
const TASK: &str = "Tell me a long story about a lighthouse keeper.";

/// How many tokens words take, found by asking an engine twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WordCost {
    /// The chat template, the system message and the task.
    fixed: f64,
    per_word: f64,
}

impl WordCost {
    /// From two prompts of so many words, and the tokens that the engine counted.
    pub(super) fn fit(short: (usize, u32), long: (usize, u32)) -> Self {
        let per_word = (f64::from(long.1) - f64::from(short.1)) / (long.0 - short.0) as f64;
        Self { fixed: f64::from(short.1) - per_word * short.0 as f64, per_word }
    }

    /// Words of a prompt with so many tokens in all.
    pub(super) fn words_of_prompt(&self, tokens: u32) -> usize {
        self.words(f64::from(tokens) - self.fixed)
    }

    /// Words of a text with so many tokens.
    pub(super) fn words_of_text(&self, tokens: u32) -> usize {
        self.words(f64::from(tokens))
    }

    fn words(&self, tokens: f64) -> usize {
        // A cast of a negative number gives 0.
        (tokens / self.per_word).round() as usize
    }
}

/// A conversation of one turn. Prompts of different numbers differ in their first word.
pub(super) fn prompt(number: u32, words: usize) -> Vec<Message> {
    let system = message("system", &format!("{number:04} is your number. You tell stories."));
    let user = match words {
        0 => TASK.to_owned(),
        _ => format!("{}. {TASK}", text(number, words)),
    };
    vec![system, message("user", &user)]
}

/// The turn after an answer.
pub(super) fn next_turn(mut conversation: Vec<Message>, answer: &str, number: u32, words: usize) -> Vec<Message> {
    conversation.push(message("assistant", answer));
    conversation.push(message("user", &text(number, words)));
    conversation
}

fn text(number: u32, words: usize) -> String {
    let words: Vec<&str> = WORDS.iter().cycle().skip(number as usize % WORDS.len()).take(words).copied().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_that_is_asked_for_comes_out() {
        // 30 tokens of template, 1.25 for each word.
        let tokens = |words: usize| (30.0 + 1.25 * words as f64) as u32;
        let cost = WordCost::fit((16, tokens(16)), (48, tokens(48)));
        for wanted in [100, 300, 1000] {
            assert!(tokens(cost.words_of_prompt(wanted)).abs_diff(wanted) <= 1, "{wanted}");
        }
        assert_eq!(cost.words_of_text(50), 40);
        assert_eq!(cost.words_of_prompt(10), 0, "less than the template takes");
    }

    #[test]
    fn prompts_differ_in_their_first_word() {
        let first = |number| prompt(number, 10)[0].content.split(' ').next().map(str::to_owned);
        assert_ne!(first(1), first(2));
        assert_eq!(prompt(1, 10)[0].content.len(), prompt(999, 10)[0].content.len());
    }

    #[test]
    fn the_next_turn_goes_on_with_the_conversation() {
        let first = prompt(7, 20);
        let second = next_turn(first.clone(), "An answer.", 7, 5);
        assert_eq!(second[..2], first);
        let roles: Vec<&str> = second.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!(second[3].content.split(' ').count(), 5);
    }
}
