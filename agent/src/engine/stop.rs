//! Stop texts in a stream: pure text, no engine.
//!
//! An engine's own stop strings are noticed after they were streamed. This filter holds back what may be the beginning of a stop text
//! until the next text decides, so that no part of one ever reaches the reader.

/// Passes text on up to the first stop text. The result does not depend on how the text is cut into pieces.
#[derive(Debug)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What came out of [`StopFilter::push`].
#[derive(Debug, PartialEq, Eq)]
pub struct Filtered {
    /// Text that may be sent; may be empty.
    pub text: String,
    /// A stop text was completed: nothing comes after this.
    pub stopped: bool,
}

impl StopFilter {
    /// A filter for these texts. Empty ones are ignored: they would match at once.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece and gives what is now certain not to belong to a stop text.
    pub fn push(&mut self, text: &str) -> Filtered {
        if self.stopped {
            return Filtered { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            self.held.truncate(start);
            return Filtered { text: std::mem::take(&mut self.held), stopped: true };
        }
        let undecided = self.held.split_off(self.undecided_from());
        Filtered { text: std::mem::replace(&mut self.held, undecided), stopped: false }
    }

    /// The end of the text: gives what was held back, since no stop text can be completed any more.
    pub fn finish(mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop text starts that is complete first; of two that are complete at once, the longer. "Complete first" and not "starts first",
    /// because a generation ends with the character that completes a stop text: it cannot wait for a longer one.
    fn first_stop(&self) -> Option<usize> {
        let found =
            self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// Where the longest beginning of a stop text starts that the held text ends with.
    fn undecided_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = (self.held.len() + 1).saturating_sub(longest);
        let mut starts = self.held.char_indices().map(|(at, _)| at).skip_while(|at| *at < earliest);
        starts.find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]))).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut filter = StopFilter::new(stops);
        let mut out = String::new();
        for piece in pieces {
            let Filtered { text, stopped } = filter.push(piece);
            out.push_str(&text);
            if stopped {
                return (out, true);
            }
        }
        (out + &filter.finish(), false)
    }

    #[test]
    fn text_without_a_beginning_of_a_stop_text_passes_at_once() {
        let mut filter = StopFilter::new(&strings(&["END"]));
        assert_eq!(filter.push("hello"), Filtered { text: "hello".into(), stopped: false });
        assert_eq!(filter.push(" E"), Filtered { text: " ".into(), stopped: false });
        assert_eq!(filter.push("N"), Filtered { text: String::new(), stopped: false });
        assert_eq!(filter.push("Dx"), Filtered { text: String::new(), stopped: true });
        assert_eq!(filter.push("more"), Filtered { text: String::new(), stopped: true });
    }

    #[test]
    fn a_beginning_that_is_not_continued_is_given_back() {
        assert_eq!(run(&strings(&["END"]), &strings(&["E", "N", "E", "N", "x"])), ("ENENx".into(), false));
        assert_eq!(run(&strings(&["END"]), &strings(&["the E", "N"])), ("the EN".into(), false));
    }

    #[test]
    fn a_stop_text_inside_another_ends_as_soon_as_it_is_complete() {
        assert_eq!(run(&strings(&["abcd", "c"]), &strings(&["xabcd"])), ("xab".into(), true));
        assert_eq!(run(&strings(&["abcd", "c"]), &strings(&["x", "a", "b", "c"])), ("xab".into(), true));
        assert_eq!(run(&strings(&["cd", "abcd"]), &strings(&["xabcd"])), ("x".into(), true));
    }

    #[test]
    fn a_stop_text_of_several_bytes_a_character_works() {
        assert_eq!(run(&strings(&["🙂é"]), &strings(&["a🙂", "🙂", "é."])), ("a🙂".into(), true));
    }

    #[test]
    fn an_empty_stop_text_is_ignored() {
        assert_eq!(run(&strings(&[""]), &strings(&["abc"])), ("abc".into(), false));
    }

    /// The whole text, one character at a time, with nothing clever.
    fn model(stops: &[String], text: &str) -> (String, bool) {
        let mut seen = String::new();
        for character in text.chars() {
            seen.push(character);
            let ended =
                stops.iter().filter(|stop| !stop.is_empty() && seen.ends_with(stop.as_str())).map(String::len).max();
            if let Some(length) = ended {
                seen.truncate(seen.len() - length);
                return (seen, true);
            }
        }
        (seen, false)
    }

    proptest! {
        #[test]
        fn any_cutting_gives_what_the_model_gives(
            pieces in prop::collection::vec("[ab🙂é]{0,4}", 0..12),
            stops in prop::collection::vec("[ab🙂é]{0,4}", 0..4),
        ) {
            let got = run(&stops, &pieces);
            prop_assert_eq!(&got, &model(&stops, &pieces.concat()));
            for stop in stops.iter().filter(|stop| !stop.is_empty()) {
                prop_assert!(!got.0.contains(stop.as_str()));
            }
        }

        #[test]
        fn nothing_is_held_that_no_stop_text_begins_with(
            pieces in prop::collection::vec("[abc]{0,3}", 0..12),
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
        ) {
            let mut filter = StopFilter::new(&stops);
            for piece in &pieces {
                if filter.push(piece).stopped {
                    break;
                }
                let begins = stops.iter().any(|stop| stop.starts_with(filter.held.as_str()) && stop.len() > filter.held.len());
                prop_assert!(begins, "{:?} is held for {:?}", filter.held, stops);
            }
        }
    }
}
