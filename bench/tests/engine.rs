//! `titan-bench engine --matrix` as a program: small, so that it says nothing of speed.

#![allow(clippy::unwrap_used)]

use std::{fs, process::Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_titan-bench");
const MARKER: &str = "<!-- titan-bench -->";
const CONTEXT: u64 = 96;

#[test]
fn every_contender_has_every_measure_and_the_table_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let (out, document) = (dir.path().join("results.json"), dir.path().join("ENGINES.md"));
    fs::write(&document, format!("before\n{MARKER}\n{MARKER}\nafter\n")).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["engine", "--matrix", "--rounds", "1", "--tokens", "8", "--contexts", &CONTEXT.to_string()]);
    if let Some(model) = std::env::var_os("TITAN_TEST_MODEL") {
        command.arg("--model").arg(model);
    }
    let output = command.arg("--out").arg(&out).arg("--publish").arg(&document).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let table = String::from_utf8(output.stdout).unwrap();
    // A machine without llama.cpp's server says so, and has the other two.
    let contenders = match said.contains("llama.cpp is left out") {
        true => vec!["mistral_alone", "agent"],
        false => vec!["mistral_alone", "agent", "llama"],
    };
    assert_eq!(table.contains("llama.cpp"), contenders.len() == 3, "{table}");

    let report: serde_json::Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!((&report["bench"], &report["interrupted"]), (&"engine".into(), &false.into()));
    let comparisons = report["results"]["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 5, "a short prompt, one context with three measures, two at once");
    for comparison in comparisons {
        let results = comparison["results"].as_array().unwrap();
        let measured: Vec<&str> = results.iter().map(|result| result["contender"].as_str().unwrap()).collect();
        assert_eq!(measured, contenders);
        assert!(results.iter().all(|result| result["median"].as_f64().unwrap() > 0.0), "{comparison}");
    }
    let tokens = |measure: &str, contender: &str| {
        let of_measure = comparisons.iter().find(|comparison| comparison["measure"].get(measure).is_some()).unwrap();
        let results = of_measure["results"].as_array().unwrap();
        results.iter().find(|result| result["contender"] == contender).unwrap()["tokens"].clone()
    };
    let first = tokens("first_token", "agent")["prompt"].as_u64().unwrap();
    assert!(first.abs_diff(CONTEXT) <= 5, "a prompt of {first} tokens");
    let next = tokens("next_turn", "agent");
    assert!(next["prompt"].as_u64().unwrap() > first, "{next}");

    let published = fs::read_to_string(&document).unwrap();
    assert!(published.starts_with("before\n") && published.ends_with("after\n"), "{published}");
    assert!(published.contains("| tokens/s, short prompt "), "{published}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let mut command = Command::new(PROGRAM);
    command.args(["engine", "--matrix", "--llama-server", "/nowhere/llama-server"]);
    if let Some(model) = std::env::var_os("TITAN_TEST_MODEL") {
        command.arg("--model").arg(model);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("/nowhere/llama-server") && said.contains("--llama-server"), "{said}");
}
