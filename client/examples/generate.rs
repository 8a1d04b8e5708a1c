//! The whole client on one page: `cargo run -p titan-client --example generate -- MODEL "PROMPT"`.
//!
//! Environment: `COORDINATOR` (default `http://localhost:8080`); `TITAN_CERTS`, a directory that `titan certs` or `titan up` made.
//! Without the latter the text comes over gRPC in plain text.

use std::{
    env,
    error::Error,
    io::{Write as _, stdout},
    path::PathBuf,
    time::Duration,
};

use futures_util::StreamExt as _;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_client::{Prompt, TitanClient, TlsMaterial};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = env::args().skip(1);
    let (Some(model), Some(prompt), None) = (args.next(), args.next(), args.next()) else {
        return Err("usage: generate MODEL PROMPT".into());
    };
    let coordinator = env::var("COORDINATOR").unwrap_or_else(|_| "http://localhost:8080".to_owned());
    let mut builder = TitanClient::builder(coordinator);
    if let Some(dir) = env::var_os("TITAN_CERTS") {
        builder = builder.tls(certificate(dir.into())?);
    }
    let client = builder.build()?;

    let mut generation = client.generate(Prompt::new(model, prompt)).await?;
    while let Some(piece) = generation.next().await {
        print!("{}", piece?);
        stdout().flush()?;
    }
    println!();

    let ttft = generation.ttft().unwrap_or(Duration::ZERO);
    let usage = generation.usage().cloned().unwrap_or_default();
    eprintln!(
        "{} over {}, first text after {} ms, {} tokens, {:.1} tokens/s",
        generation.agent_id(),
        generation.wire().as_str(),
        ttft.as_millis(),
        usage.completion_tokens,
        usage.tokens_per_second,
    );
    client.close().await;
    Ok(())
}

/// A client certificate of the CA in `dir`, made on first use.
fn certificate(dir: PathBuf) -> Result<TlsMaterial, Box<dyn Error>> {
    const NAME: &str = "example";
    let certs = CertDir::new(dir);
    certs.ensure(&LeafRequest::new(Role::Client, NAME))?;
    let (pem, key) = (certs.leaf_pem(Role::Client, NAME), certs.leaf_key(Role::Client, NAME));
    Ok(TlsMaterial::from_files(&certs.ca_pem(), &pem, &key)?)
}
