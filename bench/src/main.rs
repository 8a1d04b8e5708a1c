//! `titan-bench`: what the wires of TitanCompute cost, measured on your machine.
//!
//! - `engine`: a real model by mistral.rs alone, through an agent over each wire, and by llama.cpp.
//! - `load`: a thousand paced token streams from one agent, over each wire.
//! - `net`: both wires and what users would pick instead, over emulated networks.
//! - `chaos`: nothing of an answer is lost or repeated, whatever networks and agents do.
//! - `route`: the coordinator's REST call, by number of agents and signing algorithm.
//! - `report`: a page, tables and plots of what `net` stored.
//!
//! Reading order: `args`, then `engine`, `load`, `net`, `chaos` or `route`. Beside them `stats` (pure), `usage` (what a process used),
//! `environment` (the machine), `report` (JSON, Markdown, pages), `lab` (a private CA and tokens), `wire` (one client for both
//! wires), `process` (what is measured runs in a process of its own), `open_files` (room for sockets), `sse` (event streams),
//! `progress`. Whatever measures puts its results into a [`report::Report`].

mod args;
mod chaos;
mod engine;
mod environment;
mod lab;
mod load;
mod net;
mod open_files;
mod process;
mod progress;
mod report;
mod route;
mod stats;
mod usage;
mod wire;

use std::process::ExitCode;

use clap::Parser as _;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Command};

/// What a shell expects of a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error,titan_bench=info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let interrupt = CancellationToken::new();
    let result = match args.command {
        Command::Engine(args) => engine::run(args, on_ctrl_c(&interrupt)).await,
        Command::Load(args) => load::run(args, on_ctrl_c(&interrupt)).await,
        Command::Net(args) => net::run(*args, on_ctrl_c(&interrupt)).await,
        Command::NetServer(args) => net::run_server(args).await,
        Command::NetClient(args) => net::run_client(args).await,
        Command::Chaos(args) => chaos::run(args, on_ctrl_c(&interrupt)).await,
        Command::ChaosServer(args) => chaos::serve(args).await,
        Command::Route(args) => route::run(args, on_ctrl_c(&interrupt)).await,
        Command::Report(args) => report::run(&args),
        Command::SyntheticAgent(args) => load::serve(args).await,
        Command::BenchCoordinator(args) => route::serve(args).await,
    };
    match result {
        Ok(()) if interrupt.is_cancelled() => ExitCode::from(INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("titan-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C ends what runs, not the program: what was measured so far is still reported.
fn on_ctrl_c(interrupt: &CancellationToken) -> CancellationToken {
    let interrupted = interrupt.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    interrupt.clone()
}
