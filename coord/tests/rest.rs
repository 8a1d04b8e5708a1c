//! REST over real sockets: what a router called in memory cannot show.

#![allow(clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, time::SystemTime};

use serde_json::{Value, json};
use support::{Harness, material, rest_client};
use titan_certs::{COORDINATOR_SERVER_NAME, Role};
use titan_coord::{BindError, Config, Coordinator};
use titan_proto::{COORDINATOR_NAME, MAX_REST_BODY_BYTES, rest, v1::StatusRequest};
use titan_transport::token::{Algorithm, TokenVerifier};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PATH: &str = "/api/v1/inference/request";

fn prompt() -> Value {
    json!({"client_id": "c", "model": "smollm2:135m", "prompt": "Hello"})
}

/// Sends bytes as they are and returns everything that comes back.
async fn raw(port: u16, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn one_port_answers_in_plain_text_and_over_tls() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let ca = material(&harness.dir, Role::Client, "c");
    let client = rest_client(&ca);
    for url in [harness.http(PATH), harness.http(PATH).replace("http://", "https://")] {
        let response = client.post(&url).body(prompt().to_string()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{url}");
        let answer: rest::InferenceResponse = response.json().await.unwrap();
        assert_eq!((answer.agent_id.as_str(), answer.agent_endpoint.as_str()), ("agent-1", "localhost:50052"));
    }
    // By the name that every coordinator's certificate has.
    let addr = SocketAddr::from(([127, 0, 0, 1], harness.http_port));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.roots[0].clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(titan_transport::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let named = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls);
    let named = named.resolve(COORDINATOR_SERVER_NAME, addr).build().unwrap();
    let url = format!("https://{COORDINATOR_SERVER_NAME}:{}/api/v1/health", harness.http_port);
    let health: rest::Health = named.get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!((health.status.as_str(), health.service.as_str()), ("healthy", COORDINATOR_NAME));
}

#[tokio::test]
async fn a_sender_of_too_much_gets_to_read_why_it_was_refused() {
    let harness = Harness::start().await;
    let ca = material(&harness.dir, Role::Client, "c");
    let response =
        rest_client(&ca).post(harness.http(PATH)).body(vec![b' '; 3 * MAX_REST_BODY_BYTES]).send().await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(response.json::<rest::Error>().await.unwrap().error, "payload_too_large");

    // curl asks first.
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        3 * MAX_REST_BODY_BYTES
    );
    let answer = raw(harness.http_port, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(r#""error":"payload_too_large","code":413"#), "{answer}");
}

#[tokio::test]
async fn a_script_without_content_type_is_served() {
    let harness = Harness::start().await;
    let body = prompt().to_string();
    let request =
        format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let answer = raw(harness.http_port, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(r#""error":"no_agents""#), "{answer}");
}

#[tokio::test]
async fn what_passes_its_ports_is_counted_to_the_byte() {
    let harness = Harness::start().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (status, health) = (get("/api/v1/status"), get("/api/v1/health"));
    let traffic = |answer: &str| {
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str::<rest::Status>(body).unwrap().traffic
    };
    let before = raw(harness.http_port, status.as_bytes()).await;
    let between = raw(harness.http_port, health.as_bytes()).await;
    let after = traffic(&raw(harness.http_port, status.as_bytes()).await);
    let begun = traffic(&before);
    assert_eq!(after.http.received - begun.http.received, (health.len() + status.len()) as u64);
    assert_eq!(after.http.sent - begun.http.sent, (before.len() + between.len()) as u64);
    assert_eq!(after.grpc, begun.grpc);
    harness.plain().await.query_system_status(StatusRequest::default()).await.unwrap();
    let last = traffic(&raw(harness.http_port, status.as_bytes()).await);
    assert!(last.grpc.received > after.grpc.received && last.grpc.sent > after.grpc.sent, "{last:?}");
}

#[tokio::test]
async fn signing_keys_persist_across_a_restart() {
    let harness = Harness::start_in(tempfile::tempdir().unwrap(), |config| {
        config.token_algorithm = Algorithm::RS256;
    })
    .await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let client = rest_client(&material(&harness.dir, Role::Client, "c"));
    let answer = client.post(harness.http(PATH)).body(prompt().to_string()).send().await.unwrap();
    let answer: rest::InferenceResponse = answer.json().await.unwrap();
    let jwks = client.get(harness.http("/.well-known/jwks.json")).send().await.unwrap().text().await.unwrap();
    drop(agent);
    drop(client);

    // Again with RS256, then with another algorithm: the old key is still published.
    let dir = harness.stop().await;
    let harness = Harness::start_in(dir, |config| config.token_algorithm = Algorithm::RS256).await;
    let client = rest_client(&material(&harness.dir, Role::Client, "c"));
    let again = client.get(harness.http("/.well-known/jwks.json")).send().await.unwrap().text().await.unwrap();
    assert_eq!(jwks, again);
    drop(client);
    let dir = harness.stop().await;
    let harness = Harness::start_in(dir, |config| config.token_algorithm = Algorithm::EdDSA).await;
    let client = rest_client(&material(&harness.dir, Role::Client, "c"));
    let both = client.get(harness.http("/.well-known/jwks.json")).send().await.unwrap().text().await.unwrap();
    let verifier = TokenVerifier::new(COORDINATOR_NAME);
    verifier.set_keys(&both).unwrap();
    let claims = verifier.verify(&answer.session_token, "agent-1", SystemTime::now()).unwrap();
    assert_eq!(claims.job_id, answer.job_id);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_variable_that_sets_it() {
    let harness = Harness::start().await;
    let taken = SocketAddr::from(([127, 0, 0, 1], harness.grpc_port));
    let config = Config {
        http_addr: "127.0.0.1:0".parse().unwrap(),
        grpc_addr: taken,
        key_dir: harness.dir.path().join("keys"),
        token_algorithm: Algorithm::ES256,
        ..Config::default()
    };
    let error = Coordinator::bind(config).await.err().unwrap();
    assert!(matches!(error, BindError::Listen { what: "gRPC", .. }));
    assert!(error.to_string().contains("COORDINATOR_PORT") && error.to_string().contains(&taken.to_string()));
}

#[tokio::test]
async fn nothing_is_made_or_bound_with_a_configuration_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        http_addr: "0.0.0.0:0".parse().unwrap(),
        key_dir: dir.path().join("keys"),
        token_algorithm: Algorithm::ES256,
        ..Config::default()
    };
    let error = Coordinator::bind(config).await.err().unwrap().to_string();
    assert!(error.contains("titan certs init"), "{error}");
    assert!(!dir.path().join("keys").exists());
}
