//! One keep-alive connection to the coordinator's REST port, one request at a time on it, each answer checked.

use std::time::SystemTime;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use titan_coord::PROMPT_DIGEST;
use titan_proto::{
    COORDINATOR_NAME, DEFAULT_MAX_TOKENS,
    rest::{InferenceRequest, InferenceResponse},
};
use titan_transport::token::TokenVerifier;
use tokio::net::TcpStream;

use super::fleet::{Claims, MODEL};

const PATH: &str = "/api/v1/inference/request";
const KEYS_PATH: &str = "/.well-known/jwks.json";
const CLIENT_ID: &str = "bench-client";

/// A connection. Dropping it closes it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    body: Bytes,
    claims: Option<Claims>,
}

impl Connection {
    /// `claims`: where the jobs that it is given are claimed, if anywhere.
    pub(super) async fn open(port: u16, claims: Option<Claims>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connecting to the coordinator")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; what went wrong until then, the sender's owner hears.
        tokio::spawn(connection);
        Ok(Self { sender, host: format!("127.0.0.1:{port}"), body: question()?.into(), claims })
    }

    /// Asks for an agent, as Titan's client does, and looks whether the answer is one.
    pub(super) async fn route(&mut self) -> anyhow::Result<InferenceResponse> {
        let bytes = self.call(Method::POST, PATH, self.body.clone()).await?;
        let answer: InferenceResponse = serde_json::from_slice(&bytes).context("the coordinator's answer")?;
        let is_token = answer.session_token.split('.').filter(|part| !part.is_empty()).count() == 3;
        anyhow::ensure!(
            is_token && !answer.agent_endpoint.is_empty(),
            "the answer lacks token or endpoint: {answer:?}"
        );
        if let Some(claims) = &self.claims {
            // Where nobody listens any more, the agent is gone, and the next answer says so.
            let _ = claims.send(answer.job_id.clone());
        }
        Ok(answer)
    }

    /// The same, and verifies the token as the agent would, with the keys that the coordinator publishes.
    pub(super) async fn route_verified(&mut self) -> anyhow::Result<()> {
        let answer = self.route().await?;
        let keys = self.call(Method::GET, KEYS_PATH, Bytes::new()).await?;
        let verifier = TokenVerifier::new(COORDINATOR_NAME);
        verifier.set_keys(std::str::from_utf8(&keys)?)?;
        let claims = verifier.verify(&answer.session_token, &answer.agent_id, SystemTime::now())?;
        anyhow::ensure!(
            claims.model == MODEL && claims.client_id == CLIENT_ID,
            "a token for somebody else: {claims:?}"
        );
        Ok(())
    }

    async fn call(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "*/*")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status == StatusCode::OK, "{path}: {status}, {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}

/// As Titan's client writes it: a digest stands for the prompt.
fn question() -> serde_json::Result<Vec<u8>> {
    // The digest of "abc" (FIPS 180-2, appendix B.1): any prompt's is as long.
    let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    serde_json::to_vec(&InferenceRequest {
        client_id: Some(CLIENT_ID.to_owned()),
        model: Some(MODEL.to_owned()),
        prompt: None,
        max_tokens: Some(DEFAULT_MAX_TOKENS),
        temperature: Some(0.0),
        parameters: [(PROMPT_DIGEST.to_owned(), digest.to_owned())].into(),
        ..InferenceRequest::default()
    })
}
