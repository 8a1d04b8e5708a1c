//! A process on the server host: the server of one subject, and the relays before it.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{
    args::HostArgs,
    protocol::{Answer, Numbered, Order},
    stdio::serve_orders,
    subjects::{self, Agents},
};
use crate::{net::stdio::MOST_SOCKETS, open_files, process::say, usage::Usage};

/// The number of what no order asked for: that it serves.
pub(crate) const READY_ID: u64 = 0;

/// Serves until standard input ends.
pub(crate) async fn run(args: HostArgs) -> anyhow::Result<()> {
    open_files::allow_up_to(MOST_SOCKETS);
    let HostArgs { subject, lab, token_rate, apart, agent } = &args;
    let (mut serving, agents) = match agent {
        Some(number) => (subjects::serve_agent(*subject, *number, lab, *token_rate).await?, None),
        None if *apart => {
            let (serving, agents) = subjects::serve_apart(*subject, lab, *token_rate).await?;
            (serving, Some(agents))
        }
        None => (subjects::serve(*subject, lab, *token_rate).await?, None),
    };
    say(&Numbered { id: READY_ID, body: Answer::Ready { note: serving.note.clone() } })?;
    let host = Arc::new(ServerHost { processes: serving.processes.clone(), agents: agents.map(Mutex::new) });
    let orders = serve_orders(move |Numbered { body, .. }| {
        let host = host.clone();
        async move { host.obey(body).await.unwrap_or_else(|error| Answer::Failed { error: format!("{error:#}") }) }
    });
    tokio::select! {
        result = orders => result,
        error = serving.failed() => Err(error),
    }
}

struct ServerHost {
    /// Whose processor time is the subject's too.
    processes: Vec<u32>,
    /// Those that can be killed.
    agents: Option<Mutex<Agents>>,
}

impl ServerHost {
    async fn obey(&self, order: Order) -> anyhow::Result<Answer> {
        match (order, &self.agents) {
            (Order::Usage, _) => Ok(Answer::Used(Usage::now()?.and(&Usage::of_processes(&self.processes)?))),
            (Order::SpareAgent, Some(agents)) => {
                agents.lock().await.start_one().await?;
                Ok(Answer::Done)
            }
            (Order::KillAgent, Some(agents)) => {
                agents.lock().await.kill_first().await?;
                Ok(Answer::Done)
            }
            _ => anyhow::bail!("this server takes no such order"),
        }
    }
}
