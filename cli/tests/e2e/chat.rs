//! `titan chat`, and what shows a fleet: with a pipe in place of a terminal.

use std::{
    io::{BufRead as _, Write as _},
    process::Stdio,
};

use serde_json::Value;

use crate::support::{Process, Up, first_bytes, stderr, stdout, synthetic_text};

#[test]
fn a_conversation_is_held_and_written_down() {
    let up = Up::synthetic(0, &[]);
    let file = up.user.dir.path().join("talk.md");
    let lines = format!("hello\n/model\n/model other\n/retry\n/save {}\n/nonsense\n", file.display());
    let mut command = up.user.titan(["chat", "--coordinator", &up.rest, "--max-tokens", "3", "--system", "Be brief."]);
    let mut chat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = chat.wait_with_output().unwrap();
    let (said, complained) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{complained}");
    assert_eq!(said.matches(&synthetic_text(3)).count(), 2, "{said}");
    assert!(said.contains("* synthetic"), "{said}");
    assert!(complained.contains("no model other") && complained.contains("no /nonsense"), "{complained}");
    let written = std::fs::read_to_string(file).unwrap();
    let expected = format!("## system\n\nBe brief.\n\n## user\n\nhello\n\n## assistant\n\n{}\n\n", synthetic_text(3));
    assert_eq!(written, expected);
}

#[test]
fn it_ends_when_it_is_told_to_in_the_middle_of_an_answer() {
    let up = Up::synthetic(20, &[]);
    let mut command = up.user.titan(["chat", "--coordinator", &up.rest, "--max-tokens", "100000"]);
    command.stdin(Stdio::piped());
    let (mut chat, mut said) = Process::spawn(command, up.user.dir.path());
    said.read_line(&mut String::new()).unwrap();
    chat.stdin().write_all(b"hello\n").unwrap();
    first_bytes(&mut said);
    chat.signal("TERM");
    assert_eq!(chat.end().code(), Some(143));
}

#[test]
fn models_and_agents_are_shown() {
    let up = Up::synthetic(0, &["--agents", "2"]);
    let show = |arguments: &[&str]| {
        let all = arguments.iter().copied().chain(["--coordinator", &up.rest]);
        let output = up.user.output(all);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let models = show(&["models"]);
    assert!(models.lines().any(|line| line.split_whitespace().take(2).eq(["synthetic", "2"])), "{models}");
    let models: Value = serde_json::from_str(&show(&["models", "--json"])).unwrap();
    assert_eq!((&models[0]["name"], &models[0]["agents"]), (&"synthetic".into(), &2.into()));
    let status = show(&["status"]);
    assert!(status.starts_with("2 agents, 2 of them healthy\n") && status.contains("\nagent-2 "), "{status}");
}
