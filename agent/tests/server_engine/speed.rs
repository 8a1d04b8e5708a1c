//! What the agent costs: tokens per second of one stream, through it and from the server directly, by turns.

use std::time::Instant;

use futures_util::StreamExt as _;
use serde_json::json;
use titan_proto::v1::StreamRequest;
use titan_transport::{Wire, token::Claims};

use crate::{
    MODEL,
    fixture::{self, Client, Running},
    llama_server::{LlamaServer, client},
};

const ROUNDS: usize = 6;
const TOKENS: i32 = 100;
const PROMPT: &str = "Write a long story about the sea.";

/// A measurement, and no test: `cargo test -p titan-agent --test server_engine -- --ignored --nocapture what_the_agent_costs`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for a machine that does nothing else"]
async fn what_the_agent_costs() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let agent = Running::start_with(server.engine().await, |_| ()).await;
    let http = client();
    let (mut grpc, mut quic) = (agent.client(Wire::Http).await, agent.client(Wire::Quic).await);
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..=ROUNDS {
        // Each takes each place in the order equally often.
        for turn in 0..3 {
            let which = (round + turn) % 3;
            let rate = match which {
                0 => direct(&http, &format!("http://{}/v1/chat/completions", server.addr)).await,
                1 => through(&mut grpc).await,
                _ => through(&mut quic).await,
            };
            // The first round fills caches.
            if round > 0 {
                rates[which].push(rate);
            }
        }
    }
    let [direct, grpc, quic] = rates.each_ref().map(|rates| median(rates));
    println!(
        "tokens/s, median of {ROUNDS}: direct {direct:.2}, through the agent over gRPC {grpc:.2}, over QUIC {quic:.2}"
    );
    println!("ratio to direct: gRPC {:.4}, QUIC {:.4}", grpc / direct, quic / direct);
}

/// Tokens per second after the first one.
struct Meter {
    first: Option<Instant>,
    pieces: u32,
}

impl Meter {
    fn piece(&mut self) {
        self.first.get_or_insert_with(Instant::now);
        self.pieces += 1;
    }

    fn rate(&self) -> f64 {
        f64::from(self.pieces - 1) / self.first.unwrap().elapsed().as_secs_f64()
    }
}

async fn direct(http: &reqwest::Client, url: &str) -> f64 {
    let body = json!({"messages": [{"role": "user", "content": PROMPT}], "stream": true, "max_tokens": TOKENS,
        "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "stream_options": {"include_usage": true}});
    let mut bytes = http.post(url).json(&body).send().await.unwrap().bytes_stream();
    let (mut meter, mut text) = (Meter { first: None, pieces: 0 }, Vec::new());
    while let Some(chunk) = bytes.next().await {
        text.extend_from_slice(&chunk.unwrap());
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let event = String::from_utf8(text.drain(..end + 2).collect()).unwrap();
            if event.contains("\"content\":\"") {
                meter.piece();
            }
        }
    }
    meter.rate()
}

async fn through(client: &mut Client) -> f64 {
    let claims = Claims { model: MODEL.to_owned(), ..fixture::claims() };
    let request = StreamRequest {
        session_token: fixture::token(&claims),
        prompt: PROMPT.to_owned(),
        compact: true,
        ..fixture::request(TOKENS)
    };
    let mut stream = client.stream(request).await.unwrap();
    let mut meter = Meter { first: None, pieces: 0 };
    while let Some(message) = stream.message().await.unwrap() {
        if !message.content.is_empty() {
            meter.piece();
        }
    }
    meter.rate()
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}
