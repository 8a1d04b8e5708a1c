//! `titan proxy`: the OpenAI API on this machine, carried over the fast path.

use std::{
    convert::Infallible,
    io::{self, Write as _},
    net::SocketAddr,
};

use anyhow::{Context as _, bail};
use titan_client::TitanClient;
use titan_proto::host::is_loopback_ip;
use titan_proxy::Clients;
use titan_transport::tls::{Renewals, TlsMaterial, follow};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Outcome, Usage, client, serve};
use crate::{args::ProxyArgs, signals::Signals, trust};

pub(super) async fn proxy(args: ProxyArgs, signals: &Signals) -> anyhow::Result<Outcome> {
    let key = args.require_key.clone();
    if key.is_none() && !is_loopback_ip(args.listen.ip()) {
        bail!(Usage(format!(
            "--listen {}: other machines can reach this address, and anyone there could generate: give --require-key (TITAN_PROXY_KEY)",
            args.listen
        )));
    }
    let key_shown = args.key.api_key.as_deref();
    let renewed = trust::renewed_client_with_key(
        &args.identity,
        key_shown,
        &args.coordinator,
        args.check_certs,
        signals.reloads(),
    );
    // It may start before its coordinator, and be told to stop meanwhile.
    let (tls, renewals) = tokio::select! {
        renewed = renewed => renewed?.unzip(),
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    let clients = Clients::new(client_of(&args, tls)?);

    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: --listen chooses another address", args.listen))?;
    let address = listener.local_addr()?;
    let router = titan_proxy::router(&clients, key);
    // Whoever closed stdout wants the proxy all the same.
    let _ = io::stdout().write_all(announcement(&args, address).as_bytes());

    let shutdown = CancellationToken::new();
    let outcome = tokio::select! {
        outcome = serve(signals, shutdown.clone(), titan_proxy::serve(listener, router, shutdown)) => outcome,
        never = renew(&args, &clients, renewals) => match never {},
    };
    clients.get().close().await;
    outcome
}

fn client_of(args: &ProxyArgs, tls: Option<TlsMaterial>) -> anyhow::Result<TitanClient> {
    Ok(client::builder(&args.coordinator, args.wire, tls, &args.key, &args.without).build()?)
}

/// Goes on with each new certificate. Answers that run keep the one that they began with.
async fn renew(args: &ProxyArgs, clients: &Clients, renewals: Option<Renewals>) -> Infallible {
    if let Some(renewals) = renewals {
        follow(renewals, |identities| {
            client_of(args, Some(identities.private.clone())).map(|client| clients.replace(client))
        })
        .await;
    }
    std::future::pending().await
}

fn announcement(args: &ProxyArgs, address: SocketAddr) -> String {
    if args.json {
        return format!("{}\n", serde_json::json!({"url": format!("http://{address}/v1")}));
    }
    let key = if args.require_key.is_some() { "the key of --require-key" } else { "any" };
    format!(
        "OpenAI API: http://{address}/v1, for the agents of {}\nOPENAI_BASE_URL=http://{address}/v1 OPENAI_API_KEY={key}\n",
        args.coordinator
    )
}
