//! Text that others wrote, on a terminal: escape sequences are for the terminal's owner to send.

use std::fmt;

/// Passes text on with its control characters as their names: `\n`, `\u{1b}`. So it stays on its line, and moves no cursor.
pub(crate) struct Escaping<W>(pub(crate) W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_control) {
            let (clean, from) = rest.split_at(at);
            self.0.write_str(clean)?;
            let mut characters = from.chars();
            for character in characters.next().into_iter().flat_map(char::escape_default) {
                self.0.write_char(character)?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

/// [`Escaping`] for a whole text.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    // Writing to a String cannot fail.
    let _ = fmt::Write::write_str(&mut Escaping(&mut line), text);
    line
}

/// A model's text: its lines and tabs stay, escape sequences do not.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().filter(|&character| !character.is_control() || matches!(character, '\n' | '\t')).collect()
}

/// Control characters, and those that turn the direction of writing, with which a line shows something else than it says
/// (Unicode Technical Report 36 §3.1.2).
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_by_name() {
        assert_eq!(
            one_line("a\tb\r\nc\x1b[31m\u{7f}\u{9b}\u{202e}d äöü ✓"),
            "a\\tb\\r\\nc\\u{1b}[31m\\u{7f}\\u{9b}\\u{202e}d äöü ✓"
        );
        assert_eq!(one_line(r#"C:\new "quoted""#), r#"C:\new "quoted""#, "what is harmless stays as it is");
    }

    #[test]
    fn a_models_text_keeps_its_lines() {
        assert_eq!(harmless("a\n\tb\x1b[2Jc\u{9b}d"), "a\n\tb[2Jcd");
    }
}
