//! `titan up`, and `titan run` against it.

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use titan_client::{Prompt, Wire, WirePreference};
use titan_proto::v1::{StreamRequest, agent_service_client::AgentServiceClient};

use crate::support::{Process, Up, first_bytes, http, read_json, stderr, stdout, synthetic_text};

#[tokio::test]
async fn rest_is_as_the_contract_says() {
    let up = Up::synthetic(0, &["--agents", "2"]);
    let health: Value = http().get(format!("{}/api/v1/health", up.rest)).send().await.unwrap().json().await.unwrap();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["service"], "titancompute-coordinator");
    assert!(health["timestamp"].is_string());

    let status = http().get(format!("{}/api/v1/status?include_agents=true", up.rest)).send().await.unwrap();
    let status: Value = status.json().await.unwrap();
    assert_eq!((&status["total_agents"], &status["healthy_agents"]), (&json!(2), &json!(2)));
    for (number, agent) in (1..).zip(status["agents"].as_array().unwrap()) {
        assert_eq!(agent["id"], format!("agent-{number}"));
        assert_eq!(agent["status"], "healthy");
        assert_eq!(agent["supported_models"], json!(["synthetic"]));
        assert_eq!(
            (&agent["running_jobs"], &agent["queued_jobs"], &agent["max_jobs"]),
            (&json!(0), &json!(0), &json!(4))
        );
        assert!(agent["total_ram_mb"].as_i64().unwrap() > 0 && agent["free_ram_mb"].as_i64().unwrap() > 0);
        for field in ["endpoint", "total_vram_mb", "free_vram_mb", "rtt_ms", "last_heartbeat"] {
            assert!(!agent[field].is_null(), "{field}");
        }
    }
}

#[tokio::test]
async fn a_token_from_rest_opens_a_stream_in_plain_text() {
    let up = Up::synthetic(0, &[]);
    let body = json!({"client_id": "test", "model": "synthetic", "prompt": "one two"});
    let url = format!("{}/api/v1/inference/request", up.rest);
    let route: Value = http().post(url).json(&body).send().await.unwrap().json().await.unwrap();
    let token = route["session_token"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3);
    assert!(route["job_id"].as_str().unwrap().starts_with("job_"));
    assert!(route["expires_at"].is_i64() && route["estimated_rtt_ms"].is_number());
    assert_eq!(route["agent_id"], "agent-1");
    assert_eq!(route["agent_endpoint"], up.printed["agents"][0]["grpc"]);
    assert_eq!(route["quic_endpoint"], up.printed["agents"][0]["quic"]);
    assert_eq!(route["endpoints"]["grpc"]["tls"], "none");
    assert_eq!(route["endpoints"]["quic"]["alpn"], "titan/1");

    let endpoint = format!("http://{}", route["agent_endpoint"].as_str().unwrap());
    let mut agent = AgentServiceClient::connect(endpoint).await.unwrap();
    let request =
        StreamRequest { session_token: token.into(), prompt: "one two".into(), max_tokens: 7, ..Default::default() };
    let mut stream = agent.stream_inference(request.clone()).await.unwrap().into_inner();
    let (mut text, mut done) = (String::new(), false);
    while let Some(response) = stream.message().await.unwrap() {
        text.push_str(&response.content);
        done = response.done;
    }
    assert!(done, "the last response says that it is");
    assert_eq!(text, synthetic_text(7));
    let bad = StreamRequest { session_token: "garbage".into(), ..request };
    let refused = agent.stream_inference(bad).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn the_client_library_streams_over_quic() {
    let up = Up::synthetic(0, &[]);
    let client = up.client().wire(WirePreference::Quic).build().unwrap();
    for turn in 0..2 {
        let mut generation = client.generate(Prompt::new("synthetic", "one two three")).await.unwrap();
        let mut text = String::new();
        while let Some(more) = generation.next().await {
            text.push_str(&more.unwrap());
        }
        assert_eq!(text, synthetic_text(100));
        assert_eq!((generation.wire(), generation.routed()), (Wire::Quic, turn == 0));
        assert_eq!(generation.usage().unwrap().completion_tokens, 100);
    }
    assert_eq!((client.stats().rest_calls, client.stats().quic.full_handshakes), (1, 1));
    client.close().await;
}

#[test]
fn run_prints_the_text_and_one_closing_line_on_each_wire() {
    let up = Up::synthetic(0, &[]);
    for wire in ["quic", "grpc"] {
        // The only model there is need not be named.
        let done = up.run(["--wire", wire, "--max-tokens", "20", "hello"]).output().unwrap();
        assert!(done.status.success(), "{}", stderr(&done));
        assert_eq!(stdout(&done), synthetic_text(20) + "\n");
        let line = stderr(&done);
        assert!(line.starts_with(&format!("agent-1 · {wire} · TTFT ")), "{line}");
        assert!(line.contains(" · 20 tokens · ") && line.contains("tokens/s"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[test]
fn run_as_json_says_the_same_in_objects() {
    let up = Up::synthetic(0, &[]);
    let done = up.run(["--json", "--max-tokens", "9", "-m", "synthetic", "hello"]).output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    let (text, end) = read_json(&done.stdout);
    assert_eq!(text, synthetic_text(9));
    assert_eq!((&end["done"], &end["agent"], &end["wire"]), (&json!(true), &json!("agent-1"), &json!("quic")));
    assert_eq!(
        (&end["tokens"], &end["routed"], &end["connection"]),
        (&json!(9), &json!(true), &json!("full_handshake"))
    );
    assert!(end["ttft_ms"].as_f64().unwrap() > 0.0 && end["tokens_per_second"].is_number());
}

#[test]
fn a_repeated_request_keeps_its_route_and_its_session() {
    let up = Up::synthetic(0, &[]);
    let done = up.run("-v --wire quic --repeat 3 --reconnect --max-tokens 3 hello".split(' ')).output().unwrap();
    let details: Vec<String> =
        stderr(&done).lines().filter(|line| line.starts_with("route:")).map(ToOwned::to_owned).collect();
    assert_eq!(details.len(), 3, "{}", stderr(&done));
    assert!(details[0].contains("asked the coordinator") && details[0].contains("full handshake"), "{details:?}");
    for again in &details[1..] {
        assert!(again.contains("no REST call") && again.contains("connection: 0-RTT"), "{again}");
    }
}

#[test]
fn the_next_process_begins_with_early_data() {
    const MOST_TURNS: u32 = 50;
    let up = Up::synthetic(0, &[]);
    let run = |more: &str| {
        let done =
            up.run("-v --wire quic --max-tokens 3 hello".split(' ').chain(more.split_whitespace())).output().unwrap();
        assert!(done.status.success(), "{}", stderr(&done));
        assert_eq!(stdout(&done), synthetic_text(3) + "\n");
        stderr(&done).lines().find(|line| line.starts_with("route:")).map(ToOwned::to_owned).unwrap()
    };
    assert!(run("--without stored-sessions").contains("connection: full handshake"));
    assert!(!up.user.cache().join("sessions").exists());
    assert!(run("").contains("connection: full handshake"));
    // Every one leaves a session for the next. Where the machine is busy, the handshake may be over before the prompt is on its way:
    // over loopback it takes no time. Then that prompt was no early data, but not each time.
    let mut early = 0;
    for turn in 0..MOST_TURNS {
        let again = run("");
        assert!(again.contains("asked the coordinator"), "routes are not stored: {again}");
        assert!(again.contains("connection: 0-RTT, session from disk"), "{again}");
        early += u32::from(again.contains("0-RTT, session from disk, prompt sent as early data"));
        if turn >= 2 && early > 0 {
            break;
        }
    }
    assert!(early > 0, "no prompt of {MOST_TURNS} was sent before its handshake was complete");
    assert!(run("--without stored-sessions").contains("connection: full handshake"));
    assert!(run("--post-quantum").contains("connection: full handshake"), "no session of a handshake without it");
    assert!(run("--post-quantum").contains("session from disk"));
}

#[test]
fn the_prompt_may_come_from_stdin() {
    let up = Up::synthetic(0, &[]);
    let file = up.user.dir.path().join("prompt");
    std::fs::write(&file, "one two three four").unwrap();
    let mut command = up.run(["--json", "--max-tokens", "1", "-"]);
    let done = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(read_json(&done.stdout).1["prompt_tokens"], 4, "{}", stderr(&done));
}

#[tokio::test]
async fn ctrl_c_ends_a_generation_cleanly() {
    let up = Up::synthetic(50, &[]);
    for wire in ["quic", "grpc"] {
        let command = up.run(["--wire", wire, "--max-tokens", "1000000", "hello"]);
        let (mut run, mut stdout) = Process::spawn(command, up.user.dir.path());
        first_bytes(&mut stdout);
        run.signal("INT");
        assert_eq!(run.end().code(), Some(130));
        assert_eq!(run.log(), "", "nothing went wrong, so nothing is said");
        up.idle().await;
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let up = Up::synthetic(50, &[]);
    let (mut run, mut stdout) = Process::spawn(up.run(["--max-tokens", "1000000", "hello"]), up.user.dir.path());
    first_bytes(&mut stdout);
    drop(stdout);
    assert!(run.end().success(), "{}", run.log());
    assert_eq!(run.log(), "");
    up.idle().await;
}

// Several threads: the client has to acknowledge the end while this test waits for the process.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_running_generations_finish() {
    let mut up = Up::synthetic(50, &[]);
    let client = up.client().build().unwrap();
    let mut generation = client.generate(Prompt::new("synthetic", "hello")).await.unwrap();
    let mut text = generation.next().await.unwrap().unwrap();
    up.process.signal("TERM");
    while let Some(more) = generation.next().await {
        text.push_str(&more.unwrap());
    }
    assert_eq!(text, synthetic_text(100));
    assert!(up.process.end().success(), "{}", up.process.log());
}
