//! Who is refused, on both wires, and how.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tempfile::TempDir;
use titan_agent::engine::synthetic::SyntheticEngine;
use titan_proto::v1::{AgentStatusRequest, StreamRequest, agent_service_client::AgentServiceClient};
use titan_transport::{
    QuicConnector,
    tls::TlsMaterial,
    token::{Algorithm, Claims, TokenIssuer},
};
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::fixture::{AGENT, Client, Running, WIRES, certs, claims, issuer, request, token};

/// A request that must be refused.
struct Refused {
    name: &'static str,
    request: StreamRequest,
    code: Code,
    /// What the message must say.
    says: &'static str,
}

fn refusals() -> Vec<Refused> {
    let signed = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        token(&claims)
    };
    let elsewhere = TempDir::new().unwrap();
    let stranger = TokenIssuer::open(elsewhere.path(), Algorithm::ES256).unwrap().issue(&claims()).unwrap();
    let public_key = issuer().public_key_pem().as_bytes();
    let hs256 = |message: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, public_key), message.as_bytes());
    let tokens = [
        ("absent", String::new(), Code::Unauthenticated, "no session token"),
        ("garbage", "garbage".to_owned(), Code::Unauthenticated, "not a JSON web token"),
        ("garbage in three parts", "a.b.c".to_owned(), Code::Unauthenticated, "not a JSON web token"),
        ("too long", "x".repeat(10_000), Code::Unauthenticated, "10000 bytes"),
        ("expired", signed(|c| c.exp = c.iat - 60), Code::Unauthenticated, "expired"),
        ("not yet valid", signed(|c| c.nbf = c.iat + 100), Code::Unavailable, "valid only in"),
        ("other issuer", signed(|c| c.iss = "somebody".into()), Code::Unauthenticated, "issued by"),
        ("other agent", signed(|c| c.agent_id = "agent-2".into()), Code::PermissionDenied, "agent-2"),
        ("alg none", forged("none", |_| Vec::new()), Code::Unauthenticated, "not signed"),
        ("HS256 with the public key", forged("HS256", |m| hs256(m).as_ref().to_vec()), Code::Unauthenticated, "HS256"),
        ("unknown kid", stranger, Code::Unauthenticated, "unknown key"),
        ("changed payload", changed_payload(), Code::Unauthenticated, "signature is wrong"),
    ];
    let mut refusals: Vec<Refused> = tokens
        .into_iter()
        .map(|(name, session_token, code, says)| Refused {
            name,
            request: StreamRequest { session_token, ..request(1) },
            code,
            says,
        })
        .collect();
    refusals.push(Refused {
        name: "other model",
        request: StreamRequest { model: "other".into(), ..request(1) },
        code: Code::PermissionDenied,
        says: "other",
    });
    refusals
}

/// A token whose header says `alg` and names the real key.
fn forged(alg: &str, sign: impl FnOnce(&str) -> Vec<u8>) -> String {
    let header = format!(r#"{{"alg":"{alg}","kid":"{}","typ":"JWT"}}"#, issuer().kid());
    let message = format!("{}.{}", encode(header.as_bytes()), encode(&serde_json::to_vec(&claims()).unwrap()));
    let signature = sign(&message);
    format!("{message}.{}", encode(&signature))
}

fn changed_payload() -> String {
    let signed = token(&claims());
    let parts: Vec<&str> = signed.split('.').collect();
    let changed = Claims { client_id: "somebody else".into(), ..claims() };
    format!("{}.{}.{}", parts[0], encode(&serde_json::to_vec(&changed).unwrap()), parts[2])
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test]
async fn every_bad_token_is_refused_on_both_wires_and_nothing_runs() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        for Refused { name, request, code, says } in refusals() {
            let status = client.refused(request).await;
            assert_eq!(status.code(), code, "{name} over {}: {}", wire.as_str(), status.message());
            assert!(status.message().contains(says), "{name} over {}: {}", wire.as_str(), status.message());
        }
    }
    assert_eq!(agent.status().await.total_requests_processed, 0);
}

#[tokio::test]
async fn bad_tokens_are_refused_as_bearer_tokens_too() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        for Refused { name, request, code, .. } in refusals() {
            let status = client.refused(bearer(request)).await;
            assert_eq!(status.code(), code, "{name} over {}: {}", wire.as_str(), status.message());
        }
    }
}

#[tokio::test]
async fn a_bearer_token_is_taken_where_the_field_is_empty() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        assert_eq!(client.all(bearer(request(3))).await.unwrap().len(), 4);

        let mut basic = Request::new(StreamRequest { session_token: String::new(), ..request(1) });
        basic.metadata_mut().insert("authorization", "Basic abc".parse().unwrap());
        let status = client.refused(basic).await;
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("Bearer"), "{}", status.message());
    }
}

/// Moves the token from the field to the metadata.
fn bearer(mut request: StreamRequest) -> Request<StreamRequest> {
    let token = std::mem::take(&mut request.session_token);
    let mut request = Request::new(request);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("bearer {token}").parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_token_may_be_used_again_until_it_expires() {
    let agent = Running::start(0.0).await;
    let request = request(2);
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        for _ in 0..2 {
            assert_eq!(client.all(request.clone()).await.unwrap().len(), 3);
        }
    }
}

#[tokio::test]
async fn a_model_that_the_token_allows_but_the_agent_has_not_is_not_found() {
    let engine = SyntheticEngine::new(0.0).models(vec!["a".into(), "b".into()]);
    let agent = Running::start_with(engine, |config| config.models = vec!["a".into()]).await;
    for wire in WIRES {
        let session_token = token(&Claims { model: "b".into(), ..claims() });
        let status = agent.client(wire).await.refused(StreamRequest { session_token, ..request(1) }).await;
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("\"b\"") && status.message().contains("it has a"), "{}", status.message());
    }
}

#[tokio::test]
async fn a_certificate_of_another_role_is_refused_on_both_wires() {
    let agent = Running::start(0.0).await;
    for (material, allowed) in [(&certs().agent, false), (&certs().coordinator, true), (&certs().client, true)] {
        let quic = QuicConnector::new(material).unwrap().channel(agent.quic.clone(), agent_name());
        let clients = [
            Client::Quic(AgentServiceClient::new(quic)),
            Client::Http(AgentServiceClient::new(https(&agent, material))),
        ];
        for mut client in clients {
            let answer = client.all(request(1)).await;
            let status = client.status(AgentStatusRequest::default()).await;
            if allowed {
                assert_eq!(answer.unwrap().len(), 2);
                status.unwrap();
            } else {
                let answer = answer.unwrap_err();
                assert_eq!(answer.code(), Code::PermissionDenied);
                assert!(answer.message().contains("titan certs issue --role client"), "{}", answer.message());
                assert_eq!(status.unwrap_err().code(), Code::PermissionDenied);
            }
        }
    }
}

#[tokio::test]
async fn over_tls_a_client_needs_no_certificate_but_a_token() {
    let agent = Running::start(0.0).await;
    let anonymous = TlsMaterial { chain: Vec::new(), ..certs().client.clone() };
    let mut client = Client::Http(AgentServiceClient::new(https(&agent, &anonymous)));
    assert_eq!(client.all(request(2)).await.unwrap().len(), 3);
    let no_token = StreamRequest { session_token: String::new(), ..request(1) };
    assert_eq!(client.refused(no_token).await.code(), Code::Unauthenticated);
}

fn https(agent: &Running, material: &TlsMaterial) -> Channel {
    let endpoint = Endpoint::from_shared(format!("https://{}", agent.grpc)).unwrap();
    endpoint.tls_config(material.tonic_client_tls(&agent_name())).unwrap().connect_lazy()
}

fn agent_name() -> String {
    titan_certs::agent_server_name(AGENT)
}
