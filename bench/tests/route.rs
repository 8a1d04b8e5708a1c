//! `titan-bench route` as a program: small, so that it says nothing of speed.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_titan-bench");
/// RSA keys take long to make in a debug build.
const ALGORITHMS: &str = "EdDSA,ES256";

fn route(arguments: &[&str], out: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["route", "--algorithms", ALGORITHMS]).args(arguments).arg("--out").arg(out);
    command
}

fn results(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(out).unwrap()).unwrap()
}

#[test]
fn every_case_is_measured_as_fast_as_it_goes_and_at_half_of_that() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.json");
    let settings = ["--agents", "1,3", "--connections", "2", "--repetitions", "2", "--seconds", "0.3"];
    let output = route(&settings, &out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("EdDSA") && table.contains("ES256"), "{table}");

    let report = results(&out);
    assert_eq!((&report["bench"], &report["interrupted"]), (&"route".into(), &false.into()));
    let cases = report["results"].as_array().unwrap();
    let named = cases.iter().map(|case| (case["algorithm"].as_str().unwrap(), case["agents"].as_u64().unwrap()));
    assert_eq!(named.collect::<Vec<_>>(), [("EdDSA", 1), ("EdDSA", 3), ("ES256", 1), ("ES256", 3)]);
    for case in cases {
        assert!(case["requests_per_core"]["median"].as_f64().unwrap() > 0.0);
        let samples = case["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2);
        for sample in samples {
            let per_second =
                sample["closed"]["requests"].as_f64().unwrap() / sample["closed"]["seconds"].as_f64().unwrap();
            assert!((sample["open_rate"].as_f64().unwrap() / per_second - 0.5).abs() < 0.01);
            assert_eq!(sample["open"]["latency"]["count"], sample["open"]["requests"]);
        }
    }
}

#[test]
fn ctrl_c_keeps_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.json");
    let settings = ["--agents", "1", "--connections", "1", "--repetitions", "1000", "--seconds", "0.3"];
    let mut child = route(&settings, &out).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(stderr.any(|line| line.starts_with("2 of 1000")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    // It still writes; nobody may break its pipe.
    stderr.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let report = results(&out);
    assert_eq!((&report["interrupted"], report["results"].as_array().unwrap().len()), (&true.into(), 2));
}
