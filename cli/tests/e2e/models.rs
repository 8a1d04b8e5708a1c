//! Model files as people give them: what is served says what its tokens say, and what is not is refused in one line.

#[path = "../../../agent/tests/models/maker.rs"]
mod maker;

use std::{fs, process::Command};

use maker::{SAID, SmallModel, TEMPLATE, Tokens, Value};

use crate::support::{User, stderr, stdout};

/// `titan run` with this model and more arguments.
fn run(user: &User, model: &str, more: &[&str]) -> Command {
    user.titan(
        ["run", "--max-tokens", "64", "--temperature", "0", "--model", model]
            .iter()
            .chain(more)
            .copied()
            .chain(["Hello."]),
    )
}

#[test]
fn a_local_file_needs_no_home_directory() {
    let user = User::new();
    let path = SmallModel::new(Tokens::SentencePiece).gguf().write(&user.dir.path().join("small.gguf"));
    let mut command = run(&user, &path.display().to_string(), &[]);
    let home = user.dir.path().join("home");
    command.env("HOME", &home).env_remove("HF_HOME").env_remove("HF_HUB_CACHE");
    let output = command.output().unwrap();
    assert_eq!(stdout(&output).trim_end(), SAID, "{}", stderr(&output));
    assert!(!home.exists(), "the hub's cache was looked for, in {:?}", fs::read_dir(&home).unwrap().next());
}

#[test]
fn a_model_without_a_template_can_be_given_one() {
    let user = User::new();
    let path = SmallModel::new(Tokens::ByteLevel).without_template().gguf().write(&user.dir.path().join("small.gguf"));
    let template = user.dir.path().join("chat.jinja");
    fs::write(&template, TEMPLATE).unwrap();
    let (model, template) = (path.display().to_string(), template.display().to_string());
    let refused = run(&user, &model, &[]).output().unwrap();
    assert!(stderr(&refused).contains("--chat-template small=FILE"), "{}", stderr(&refused));
    for given in [template.clone(), format!("small={template}")] {
        let output = run(&user, &model, &["--chat-template", &given]).output().unwrap();
        assert_eq!(stdout(&output).trim_end(), SAID, "{}", stderr(&output));
    }
    let other =
        run(&user, "small", &["--chat-template", &template, "--coordinator", "http://localhost:1"]).output().unwrap();
    assert!(stderr(&other).contains("--chat-template"), "{}", stderr(&other));
}

#[test]
fn a_refusal_is_one_line_even_where_backtraces_are_wanted() {
    let user = User::new();
    let good = SmallModel::new(Tokens::ByteLevel);
    let mut unknown = good.gguf();
    unknown.set("general.architecture", Value::text("bert"));
    // mistral.rs itself meets these.
    let mut merges = good.gguf();
    merges.set("tokenizer.ggml.merges", Value::Texts(vec![b"no none".to_vec()]));
    let mut positions = good.gguf();
    positions.set("llama.rope.dimension_count", Value::U32(16));
    for (file, says) in [(unknown, "bert"), (merges, "out of vocabulary"), (positions, "do not fit together")] {
        let path = file.write(&user.dir.path().join("small.gguf"));
        let mut command = run(&user, &path.display().to_string(), &[]);
        let output = command.env("RUST_BACKTRACE", "1").output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let errors: Vec<&str> = said.lines().filter(|line| !line.starts_with("titan: loading")).collect();
        assert!(matches!(errors[..], [line] if line.starts_with("titan: ") && line.contains(says)), "{said}");
        assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    }
}
