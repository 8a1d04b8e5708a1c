//! A regular expression as a grammar of llama.cpp (GBNF), which has no field for expressions.
//!
//! What matches is the whole text, so `^` at the beginning and `$` at the end are left out. What a grammar cannot say (word boundaries, anchors
//! in the middle, bytes that are no characters) is refused by name.

use std::fmt::Write as _;

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Largest grammar in bytes: an expression of a few characters can unfold to megabytes (`\w{1000}`), and the server copies its rules.
const MAX_GRAMMAR_BYTES: usize = 256 * 1024;

/// Why an expression has no grammar.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum RegexError {
    #[error("{0}")]
    Syntax(String),
    #[error("it has {0}")]
    NotAGrammar(&'static str),
    #[error("its grammar has more than {MAX_GRAMMAR_BYTES} bytes")]
    TooLarge,
}

/// The grammar of the texts that the expression matches as a whole.
pub(super) fn gbnf(regex: &str) -> Result<String, RegexError> {
    let hir = regex_syntax::parse(regex).map_err(|error| {
        // The parser draws several lines; the last one says what is wrong.
        let text = error.to_string();
        let last = text.lines().next_back().unwrap_or_default();
        RegexError::Syntax(last.trim_start_matches("error: ").to_owned())
    })?;
    let mut grammar = "root ::= ".to_owned();
    write(&mut grammar, &hir, Ends { first: true, last: true })?;
    Ok(grammar)
}

/// Whether the beginning and the end of an expression are those of the text.
#[derive(Clone, Copy)]
struct Ends {
    first: bool,
    last: bool,
}

const INSIDE: Ends = Ends { first: false, last: false };

fn write(out: &mut String, hir: &Hir, ends: Ends) -> Result<(), RegexError> {
    if out.len() > MAX_GRAMMAR_BYTES {
        return Err(RegexError::TooLarge);
    }
    match hir.kind() {
        HirKind::Empty => out.push_str("\"\""),
        HirKind::Literal(literal) => {
            let text =
                std::str::from_utf8(&literal.0).map_err(|_| RegexError::NotAGrammar("bytes that are no text"))?;
            out.push('"');
            text.chars().for_each(|character| escaped(out, character));
            out.push('"');
        }
        HirKind::Class(class) if is_empty(class) => return Err(RegexError::NotAGrammar("a class without characters")),
        HirKind::Class(Class::Unicode(class)) => {
            out.push('[');
            for range in class.ranges() {
                escaped(out, range.start());
                if range.start() != range.end() {
                    out.push('-');
                    escaped(out, range.end());
                }
            }
            out.push(']');
        }
        HirKind::Class(Class::Bytes(_)) => return Err(RegexError::NotAGrammar("bytes that are no text")),
        HirKind::Look(Look::Start) if ends.first => out.push_str("\"\""),
        HirKind::Look(Look::End) if ends.last => out.push_str("\"\""),
        HirKind::Look(Look::Start | Look::End) => return Err(RegexError::NotAGrammar("an anchor in its middle")),
        HirKind::Look(_) => return Err(RegexError::NotAGrammar("a word boundary or an anchor of lines")),
        HirKind::Repetition(repetition) => {
            group(out, &repetition.sub, INSIDE)?;
            match (repetition.min, repetition.max) {
                (0, None) => out.push('*'),
                (1, None) => out.push('+'),
                (0, Some(1)) => out.push('?'),
                (min, None) => push(out, format_args!("{{{min},}}")),
                (min, Some(max)) if min == max => push(out, format_args!("{{{min}}}")),
                (min, Some(max)) => push(out, format_args!("{{{min},{max}}}")),
            }
        }
        HirKind::Capture(capture) => group(out, &capture.sub, ends)?,
        HirKind::Concat(parts) => {
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                // Whatever stands before or behind an anchor, it is no longer at an end; other anchors beside it may be.
                let before = parts[..at].iter().all(is_anchor);
                let after = parts[at + 1..].iter().all(is_anchor);
                group(out, part, Ends { first: ends.first && before, last: ends.last && after })?;
            }
        }
        HirKind::Alternation(branches) => {
            for (at, branch) in branches.iter().enumerate() {
                if at > 0 {
                    out.push_str(" | ");
                }
                group(out, branch, ends)?;
            }
        }
    }
    Ok(())
}

/// In parentheses, where it is more than one item.
fn group(out: &mut String, hir: &Hir, ends: Ends) -> Result<(), RegexError> {
    let single = matches!(hir.kind(), HirKind::Literal(_) | HirKind::Class(_) | HirKind::Empty | HirKind::Look(_));
    if single {
        return write(out, hir, ends);
    }
    out.push('(');
    write(out, hir, ends)?;
    out.push(')');
    Ok(())
}

fn is_empty(class: &Class) -> bool {
    match class {
        Class::Unicode(class) => class.ranges().is_empty(),
        Class::Bytes(class) => class.ranges().is_empty(),
    }
}

fn is_anchor(hir: &Hir) -> bool {
    matches!(hir.kind(), HirKind::Look(Look::Start | Look::End))
}

/// Letters and digits as they are, all else by number: GBNF has no `\-` or `\^`.
fn escaped(out: &mut String, character: char) {
    match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | ' ' => out.push(character),
        _ => match u32::from(character) {
            code @ 0..=0xff => push(out, format_args!("\\x{code:02X}")),
            code @ 0x100..=0xffff => push(out, format_args!("\\u{code:04X}")),
            code => push(out, format_args!("\\U{code:08X}")),
        },
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn expressions_become_grammars() {
        for (regex, grammar) in [
            ("abc", r#"root ::= "abc""#),
            ("^a+b?$", r#"root ::= "" ("a"+) ("b"?) """#),
            ("(yes|no)", r#"root ::= ("yes" | "no")"#),
            ("[a-c_]{2,3}", r"root ::= [\x5Fa-c]{2,3}"),
            (r"\d{3}-[0-9]{2,}", r#"root ::= ([0-9]{3}) "\x2D" ([0-9]{2,})"#),
            ("é🙂\"", r#"root ::= "\xE9\U0001F642\x22""#),
            ("(?:a(b|cd))*", r#"root ::= ("a" ("b" | "cd"))*"#),
        ] {
            let made = gbnf(&regex.replace(r"\d", "[0-9]")).unwrap();
            let plain = |text: &str| text.replace(['(', ')'], "");
            assert_eq!(plain(&made), plain(grammar), "{regex}: {made}");
        }
    }

    #[test]
    fn what_no_grammar_says_is_refused_by_name() {
        for (regex, reason) in [
            (r"\bword\b", "word boundary"),
            ("a^b", "anchor in its middle"),
            ("(a$)+", "anchor in its middle"),
            ("(?m)^a$", "anchor of lines"),
            ("[a&&b]", "class without characters"),
            ("(", "unclosed group"),
            ("a(?=b)", "look-around"),
        ] {
            let message = gbnf(regex).unwrap_err().to_string();
            assert!(message.contains(reason), "{regex}: {message}");
        }
        assert_eq!(gbnf(&r"(\w\W)".repeat(200)), Err(RegexError::TooLarge));
    }
}
