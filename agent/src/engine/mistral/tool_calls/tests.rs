#![allow(clippy::unwrap_used)]

use super::*;

#[derive(Debug, Default, PartialEq)]
struct Got {
    text: String,
    reasoning: String,
    calls: Vec<(String, String)>,
}

fn parse(format: Option<CallFormat>, pieces: &[&str]) -> Got {
    let mut parser = AnswerParser::new(format, false, Box::new(|index| format!("id{index}")));
    let mut got = Got::default();
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    for part in parts {
        match part {
            Part::Text(text) => got.text.push_str(&text),
            Part::Reasoning(text) => got.reasoning.push_str(&text),
            Part::Call(call) => {
                let index = call.index as usize;
                if !call.name.is_empty() {
                    assert_eq!(index, got.calls.len());
                    assert_eq!(call.id, format!("id{index}"));
                    got.calls.push((call.name, String::new()));
                }
                got.calls[index].1.push_str(&call.arguments);
            }
        }
    }
    got
}

fn expect(text: &str, reasoning: &str, calls: &[(&str, &str)]) -> Got {
    let calls = calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect();
    Got { text: text.into(), reasoning: reasoning.into(), calls }
}

/// Every way to cut the answer in two, and into single characters.
fn however_cut(format: Option<CallFormat>, answer: &str, expected: &Got) {
    for at in (0..=answer.len()).filter(|at| answer.is_char_boundary(*at)) {
        assert_eq!(&parse(format, &[&answer[..at], &answer[at..]]), expected, "cut at {at}");
    }
    let characters: Vec<String> = answer.chars().map(String::from).collect();
    assert_eq!(&parse(format, &characters.iter().map(String::as_str).collect::<Vec<_>>()), expected);
}

#[test]
fn text_is_text() {
    for answer in ["", "hello <b> </think", "\n\nhi <tool", "  {\"name\": 1}", "<thin"] {
        however_cut(None, answer, &expect(answer, "", &[]));
    }
    however_cut(Some(CallFormat::Tagged), "a <tool_ca b\n", &expect("a <tool_ca b\n", "", &[]));
}

#[test]
fn reasoning_is_told_apart() {
    however_cut(None, "<think>\nwell <b>\n</think>\n\nyes", &expect("yes", "well <b>\n", &[]));
    however_cut(None, "<think>cut off </thi", &expect("", "cut off </thi", &[]));
}

#[test]
fn tagged_calls_with_text_before_them() {
    let answer = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"}\\\"\"}], \"c\": \"é\"}}\n</tool_call>\n<tool_call>{\"arguments\": {}, \"name\": \"g\"}</tool_call>";
    let calls = [("f", "{\"a\": [1, {\"b\": \"}\\\"\"}], \"c\": \"é\"}"), ("g", "{}")];
    however_cut(Some(CallFormat::Tagged), answer, &expect("Let me see.", "", &calls));
}

#[test]
fn lists_and_bare_calls() {
    let list = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\", \"arguments\": \"{\\\"y\\\": 2}\"}]";
    however_cut(Some(CallFormat::List), list, &expect("", "", &[("f", "{\"x\": 1}"), ("g", "{\"y\": 2}")]));
    let bare = "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": null}}";
    however_cut(Some(CallFormat::Bare), bare, &expect("", "", &[("f", "{\"x\": null}")]));
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    for (format, answer) in [
        (CallFormat::Tagged, "<tool_call>not json"),
        (CallFormat::Tagged, "<tool_call>{\"name\": \"f"),
        (CallFormat::Bare, "{\"answer\": 42}"),
    ] {
        however_cut(Some(format), answer, &expect(answer, "", &[]));
    }
}

#[test]
fn a_call_that_is_cut_off_has_what_came() {
    let got = parse(Some(CallFormat::Tagged), &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"lo"]);
    assert_eq!(got, expect("", "", &[("f", "{\"a\": \"lo")]));
}

proptest::proptest! {
    #[test]
    fn nothing_panics(answer in "(<tool_call>|</tool_call>|<think>|</think>|[{}\\[\\]\",:a\\\\ ]|\"name\": \"f\"|\"arguments\": ){0,12}") {
        for format in [None, Some(CallFormat::Tagged), Some(CallFormat::List), Some(CallFormat::Bare)] {
            let whole = std::panic::catch_unwind(|| parse(format, &[&answer]));
            proptest::prop_assert!(whole.is_ok());
        }
    }
}
