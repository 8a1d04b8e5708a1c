//! A web page anywhere books nothing on this machine: raw requests, as a browser sends them.

use std::{
    io::{BufRead as _, Read as _, Write as _},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{Process, Up};

/// The status and the whole answer.
fn ask(authority: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(authority).unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer:?}")), answer)
}

#[test]
fn a_page_of_another_site_books_and_generates_nothing() {
    // Every route books a slot, and most are not used.
    let more = ["--cors-origin", "https://chat.example", "--allow-host", "box.example", "--max-jobs", "64"];
    let up = Up::synthetic(0, &more);
    let rest = up.rest.trim_start_matches("http://").to_owned();
    let (grpc, agent) = (up.printed["grpc"].as_str().unwrap(), up.agent());
    let (mut process, mut stdout) = Process::spawn(
        up.user.titan(["proxy", "--json", "--listen", "127.0.0.1:0", "--coordinator", &up.rest]),
        up.user.dir.path(),
    );
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let printed: Value = serde_json::from_str(&line).unwrap();
    let proxy = printed["url"].as_str().unwrap().trim_start_matches("http://").trim_end_matches("/v1").to_owned();

    let route = json!({"client_id": "c", "model": "synthetic", "prompt": "x"}).to_string();
    let chat =
        json!({"model": "synthetic", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).to_string();
    let plain = ("content-type", "text/plain");
    let json = ("content-type", "application/json");
    let doors = [
        (rest.as_str(), "/api/v1/inference/request", route.as_str(), plain, 200),
        (rest.as_str(), "/v1/chat/completions", chat.as_str(), json, 307),
        (proxy.as_str(), "/v1/chat/completions", chat.as_str(), json, 200),
        // It asks for a token, but not before it has looked who asks.
        (agent.as_str(), "/v1/chat/completions", chat.as_str(), json, 401),
    ];
    for (authority, path, body, kind, for_programs) in doors {
        let post = |headers: &[(&str, &str)]| ask(authority, "POST", path, &[&[kind], headers].concat(), body);
        // curl, requests, SDKs: no Origin.
        for host in [authority, "127.0.0.1:1", "[::1]:1", "localhost"] {
            let (status, answer) = post(&[("host", host)]);
            assert_eq!(status, for_programs, "{path} {host}: {answer}");
        }
        // A page of this machine.
        let (status, answer) = post(&[("host", authority), ("origin", "http://localhost:3000")]);
        assert_eq!(status, for_programs, "{path}: {answer}");
        for refused in [
            vec![("host", "evil.example:8080")],
            vec![("host", "evil.example:8080"), ("origin", "http://evil.example:8080")],
            vec![("host", authority), ("origin", "https://evil.example")],
            // A form, a frame without a name, a file.
            vec![("host", authority), ("origin", "null")],
        ] {
            let (status, answer) = post(&refused);
            assert_eq!(status, 403, "{path} {refused:?}: {answer}");
            let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert!(body["message"].is_string() || body["error"]["message"].is_string(), "{body}");
        }
    }
    // What the operator lets in.
    let route = |headers: &[(&str, &str)]| ask(&rest, "POST", "/api/v1/inference/request", headers, &route).0;
    assert_eq!(route(&[("host", "box.example:8080"), ("origin", "https://chat.example")]), 200);
    // gRPC's port speaks HTTP/1.1 too, and to a page by a name of its own it does not.
    let grpc_kind = ("content-type", "application/grpc");
    let path = "/titancompute.v1.CoordinatorService/RequestInference";
    assert_eq!(ask(grpc, "POST", path, &[("host", "evil.example"), grpc_kind], "").0, 403);
    process.kill();
}

/// CONTRACT: any origin may read, and preflights are answered.
#[test]
fn pages_may_read_and_ask_whether_they_may_ask() {
    let up = Up::synthetic(0, &[]);
    let rest = up.rest.trim_start_matches("http://");
    let origin = ("origin", "https://evil.example");
    for path in ["/api/v1/health", "/api/v1/status"] {
        let (status, answer) = ask(rest, "GET", path, &[("host", rest), origin], "");
        assert!(status == 200 && answer.contains("access-control-allow-origin: *"), "{answer}");
        assert_eq!(ask(rest, "GET", path, &[("host", "evil.example")], "").0, 403, "by a name of the page's own");
    }
    let preflight = [("host", rest), origin, ("access-control-request-method", "POST")];
    let (status, answer) = ask(rest, "OPTIONS", "/api/v1/inference/request", &preflight, "");
    assert!(status == 200 && answer.contains("access-control-allow-origin: *"), "{answer}");
}
