//! What a line means.

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Nothing,
    Say(String),
    Retry,
    /// Without a name: which there are.
    Model(Option<String>),
    /// `None` takes it away.
    System(Option<String>),
    Clear,
    Save(String),
    Help,
    Leave,
}

pub(super) const HELP: &str = "\
/model            the models that there are
/model NAME       go on with another model
/system TEXT      what the model shall be like; without a text, no word about it
/retry            another answer to the last message
/clear            begin anew
/save FILE        write the conversation, as Markdown
/quit             leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / is written as //.";

/// Reads a line.
pub(super) fn parse(line: &str) -> Result<Ask, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Ask::Nothing);
    }
    let Some(command) = line.strip_prefix('/') else { return Ok(Ask::Say(line.to_owned())) };
    if command.starts_with('/') {
        return Ok(Ask::Say(command.to_owned()));
    }
    let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = Some(rest.trim()).filter(|rest| !rest.is_empty()).map(str::to_owned);
    match (word, rest) {
        ("model" | "models", name) => Ok(Ask::Model(name)),
        ("system", text) => Ok(Ask::System(text)),
        ("retry", None) => Ok(Ask::Retry),
        ("clear" | "new", None) => Ok(Ask::Clear),
        ("save", Some(file)) => Ok(Ask::Save(file)),
        ("save", None) => Err("/save FILE: say where to".to_owned()),
        ("help" | "?", _) => Ok(Ask::Help),
        ("quit" | "exit" | "q", _) => Ok(Ask::Leave),
        ("retry" | "clear" | "new", Some(_)) => Err(format!("/{word} stands alone")),
        (other, _) => {
            Err(format!("there is no /{other}: /help says what there is, and // begins a message with a slash"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_or_a_command() {
        for (line, ask) in [
            ("  ", Ask::Nothing),
            (" Hello. ", Ask::Say("Hello.".into())),
            ("//etc is a folder", Ask::Say("/etc is a folder".into())),
            ("/retry", Ask::Retry),
            ("/model", Ask::Model(None)),
            ("/model  a:b ", Ask::Model(Some("a:b".into()))),
            ("/system Be brief.", Ask::System(Some("Be brief.".into()))),
            ("/system", Ask::System(None)),
            ("/save a b.md", Ask::Save("a b.md".into())),
            ("/quit", Ask::Leave),
        ] {
            assert_eq!(parse(line), Ok(ask), "{line:?}");
        }
        for (line, says) in [("/save", "FILE"), ("/retry now", "alone"), ("/shout", "/help")] {
            assert!(parse(line).is_err_and(|message| message.contains(says)), "{line}");
        }
    }
}
