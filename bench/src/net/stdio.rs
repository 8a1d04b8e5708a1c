//! The hosts' side of the protocol: lines in, lines out.

use std::{future::Future, io::BufRead as _};

use tokio::sync::mpsc;

use super::protocol::{Answer, Numbered, Order};
use crate::process::say;

/// Of one process: 20,000 connections, of which some need two files.
pub(crate) const MOST_SOCKETS: u64 = 50_000;

/// Answers orders, several at a time, until standard input ends.
pub(crate) async fn serve_orders<F>(obey: impl Fn(Numbered<Order>) -> F) -> anyhow::Result<()>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let (sender, mut orders) = mpsc::unbounded_channel::<Numbered<Order>>();
    // A thread: reading standard input blocks. It is never joined: the process ends when the orders do.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            let Ok(order) = serde_json::from_str(&line) else { return };
            if sender.send(order).is_err() {
                return;
            }
        }
    });
    while let Some(order) = orders.recv().await {
        let id = order.id;
        let work = obey(order);
        tokio::spawn(async move {
            // A runner that does not read any more has ended, and this process will.
            let _ = say(&Numbered { id, body: work.await });
        });
    }
    Ok(())
}
