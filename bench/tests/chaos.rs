//! `titan-bench chaos` as a program: few streams on the worst path, with everything that happens.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use crate::support::has_network;

#[test]
fn no_stream_loses_or_repeats_a_token_whatever_happens() {
    if !has_network() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("chaos.json");
    let output = Command::new(env!("CARGO_BIN_EXE_titan-bench"))
        .args("chaos --quick --streams 12 --tokens 60".split(' '))
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("24 QUIC: loss, reordering, duplication, address change, agent death"), "{table}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    let trials = report["results"].as_array().unwrap();
    assert_eq!(trials.len(), 4);
    for trial in trials {
        let failed: u64 = trial["failed"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(trial["whole"].as_u64().unwrap() + failed, 12, "{trial}");
        assert_eq!((&trial["lost"], &trial["repeated"]), (&0.into(), &0.into()), "{trial}");
    }
    // Where nothing but the path is bad, nothing fails.
    assert_eq!(trials[0]["whole"], 12, "{}", trials[0]);
}
