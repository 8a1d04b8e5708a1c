//! A process on the server host: the server of one subject, and the relays before it.

use super::{
    args::HostArgs,
    protocol::{Answer, Numbered, Order},
    stdio::serve_orders,
    subjects,
};
use crate::{net::stdio::MOST_SOCKETS, open_files, process::say, usage::Usage};

/// The number of what no order asked for: that it serves.
pub(crate) const READY_ID: u64 = 0;

/// Serves until standard input ends.
pub(crate) async fn run(args: HostArgs) -> anyhow::Result<()> {
    open_files::allow_up_to(MOST_SOCKETS);
    let mut serving = subjects::serve(args.subject, &args.lab, args.token_rate).await?;
    say(&Numbered { id: READY_ID, body: Answer::Ready { note: serving.note.clone() } })?;
    let processes = serving.processes.clone();
    let orders = serve_orders(move |Numbered { body, .. }| {
        let answer = match body {
            Order::Usage => Usage::now()
                .and_then(|own| Ok(own.and(&Usage::of_processes(&processes)?)))
                .map_or_else(|error| Answer::Failed { error: error.to_string() }, Answer::Used),
            _ => Answer::Failed { error: "a server takes no such order".to_owned() },
        };
        std::future::ready(answer)
    });
    tokio::select! {
        result = orders => result,
        error = serving.failed() => Err(error),
    }
}
