//! API keys from the command that makes one to the line that says what it has used.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    moves::agent,
    parts::coordinator,
    support::{PATIENCE, POLL, Up, User, http, stderr, stdout, synthetic_text},
};

/// A key that the running coordinator asks for.
fn add(up: &Up, name: &str, limits: &[&str]) -> String {
    let made = up.user.output(["keys", "add", name, "--json"].iter().chain(limits).copied());
    assert!(made.status.success(), "{}", stderr(&made));
    let made: Value = serde_json::from_str(&stdout(&made)).unwrap();
    assert_eq!(made["name"], name);
    made["key"].as_str().unwrap().to_owned()
}

fn with_key(mut command: Command, key: &str) -> Command {
    command.env("TITAN_API_KEY", key);
    command
}

/// Runs it until it goes as it should: a coordinator takes up keys within a second.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(POLL);
    }
}

/// The lines of the usage log.
fn usage(user: &User) -> Vec<Value> {
    let text = std::fs::read_to_string(user.dir.path().join("usage.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn with_the_first_key_the_door_is_closed_and_with_it_open() {
    let up = Up::synthetic(0, &[]);
    let ask = |key: Option<&str>| {
        let command = up.run(["--max-tokens", "5", "--model", "synthetic", "hello"]);
        key.into_iter().fold(command, with_key).output().unwrap()
    };
    assert!(ask(None).status.success(), "without keys nobody needs one");
    let key = add(&up, "alice", &[]);
    eventually("the first key closes the door", || !ask(None).status.success());
    let refused = ask(None);
    assert!(stderr(&refused).contains("titan keys add"), "{}", stderr(&refused));
    let answered = ask(Some(&key));
    assert!(answered.status.success(), "{}", stderr(&answered));
    assert_eq!(stdout(&answered), synthetic_text(5) + "\n");
    for (command, key, says) in [
        ("models", None, "API key is missing"),
        ("models", Some("titan-00000000-x"), "none of this coordinator's"),
        ("status", Some(key.as_str()), ""),
    ] {
        let told = up.user.titan([command, "--coordinator", &up.rest]);
        let told = key.into_iter().fold(told, with_key).output().unwrap();
        assert_eq!(told.status.success(), says.is_empty(), "{}", stderr(&told));
        assert!(stderr(&told).contains(says), "{}", stderr(&told));
    }

    let listed = stdout(&up.user.output(["keys", "list"]));
    assert!(listed.contains("alice") && !listed.contains(&key), "{listed}");
    eventually("the generation is written down", || usage(&up.user).iter().any(|line| line["key_name"] == "alice"));
    let added_up = stdout(&up.user.output(["usage", "--json", "--since", "1h"]));
    let added_up: Value = serde_json::from_str(&added_up).unwrap();
    assert_eq!((&added_up["alice"]["completion_tokens"], &added_up["alice"]["completed"]), (&5.into(), &1.into()));

    let revoked = up.user.output(["keys", "revoke", "alice"]);
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    eventually("a revoked key is refused", || !ask(Some(&key)).status.success());
    assert!(stderr(&ask(Some(&key))).contains("was revoked"));
}

#[tokio::test]
async fn a_limit_on_generations_at_once_holds_for_every_way_in() {
    let up = Up::synthetic(20, &["--max-jobs", "8"]);
    let key = add(&up, "one", &["--concurrent", "1"]);
    let ask = async |key: &str| {
        let body = serde_json::json!({
            "model": "synthetic", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100_000, "stream": true,
        });
        let request = http().post(format!("{}/v1/chat/completions", up.rest)).bearer_auth(key);
        request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap()
    };
    let begin = Instant::now();
    // The coordinator comes to know the key.
    while http().get(format!("{}/v1/models", up.rest)).bearer_auth("any").send().await.unwrap().status() != 401 {
        assert!(begin.elapsed() < PATIENCE);
        tokio::time::sleep(POLL).await;
    }
    let running = ask(&key).await;
    assert_eq!(running.status(), 200);
    let refused = ask(&key).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.text().await.unwrap().contains("concurrent = 1"));
    // Whoever hangs up makes room, and what came counts.
    drop(running);
    let begin = Instant::now();
    loop {
        match ask(&key).await.status().as_u16() {
            200 => break,
            429 => assert!(begin.elapsed() < PATIENCE, "it is never free again"),
            other => panic!("{other}"),
        }
        tokio::time::sleep(POLL).await;
    }
    let begin = Instant::now();
    while !usage(&up.user).iter().any(|line| line["outcome"] == "cancelled" && line["key_name"] == "one") {
        assert!(begin.elapsed() < PATIENCE, "{:?}", usage(&up.user));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_new_client_streams_over_quic_with_a_url_and_a_key() {
    let operator = User::new();
    let (_coord, rest, grpc) = coordinator(&operator);
    let _agent = agent(&operator, "agent-1", &grpc);
    let url = rest.replace("http://", "https://");
    let made = operator.output(["keys", "add", "alice", "--json"]);
    let key: Value = serde_json::from_str(&stdout(&made)).unwrap();
    let key = key["key"].as_str().unwrap();

    let newcomer = User::new();
    let ask = |user: &User, key: &str| {
        let command =
            ["run", "--coordinator", &url, "--wire", "quic", "--model", "synthetic", "--max-tokens", "5", "hello"];
        with_key(user.titan(command), key).output().unwrap()
    };
    let answered = ask(&newcomer, key);
    assert!(answered.status.success(), "{}", stderr(&answered));
    assert_eq!(stdout(&answered), synthetic_text(5) + "\n");
    // The certificate is kept for the next command.
    let kept = || std::fs::read_dir(newcomer.dir.path().join("enrolled")).unwrap().map(|file| file.unwrap().path());
    let before: Vec<String> = kept().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert!(ask(&newcomer, key).status.success());
    let after: Vec<String> = kept().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert_eq!((before.len(), before), (1, after));

    // The key goes to nobody but the coordinator that it is for.
    let stranger = User::new();
    let (_other, _, _) = coordinator(&stranger);
    let made = stranger.output(["keys", "add", "bob", "--json"]);
    let foreign: Value = serde_json::from_str(&stdout(&made)).unwrap();
    let foreign = foreign["key"].as_str().unwrap();
    let (bare, pin) = key.split_once('.').unwrap();
    for (key, says) in [
        (foreign.to_owned(), "does not belong to the CA"),
        (bare.to_owned(), "fingerprint of a CA"),
        (format!("{bare}.{}", &pin[1..]), "copied whole"),
        (format!("titan-00000000-x.{pin}"), "none of this coordinator's"),
    ] {
        let refused = ask(&User::new(), &key);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{says}: {}", stderr(&refused));
    }
    operator.output(["keys", "revoke", "alice"]);
    eventually("a revoked key takes its certificate with it", || !ask(&newcomer, key).status.success());
}

#[test]
fn mistakes_are_said_with_what_to_do() {
    let user = User::new();
    for (arguments, says) in [
        (&["keys", "revoke", "nobody"][..], "titan keys list"),
        (&["keys", "limit", "nobody"], "--concurrent"),
        (&["keys", "add", "x", "--concurrent", "0"], "from 1 on"),
        (&["usage"], "--log"),
        (&["models", "--api-key", ""], "a key is not empty"),
    ] {
        let refused = user.output(arguments.iter().copied());
        assert!(!refused.status.success(), "{arguments:?}");
        assert!(stderr(&refused).contains(says), "{arguments:?}: {}", stderr(&refused));
    }
    assert!(stdout(&user.output(["keys", "list"])).contains("titan keys add"));
}
