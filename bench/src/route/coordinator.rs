//! The coordinator that `route` measures, in a process of its own: see [`crate::process`].

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use titan_certs::Role;
use titan_coord::{Config, Coordinator, MAX_HEARTBEAT_TIMEOUT};
use titan_transport::token::Algorithm;
use tokio_util::sync::CancellationToken;

use super::{args::BenchCoordinatorArgs, fleet};
use crate::process::{Process, report_to_parent};

/// Where it listens on loopback.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Ports {
    pub(super) http: u16,
    pub(super) grpc: u16,
}

/// The shortest there is: a booking that nobody claims gives its slot back after that.
const BOOKING_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts one.
pub(super) async fn start(lab: &Path, algorithm: Algorithm) -> anyhow::Result<(Process, Ports)> {
    let algorithm = algorithm.as_str();
    let arguments = ["bench-coordinator".as_ref(), "--lab".as_ref(), lab.as_os_str()];
    Process::start("the coordinator", arguments.into_iter().chain(["--algorithm".as_ref(), algorithm.as_ref()])).await
}

/// Serves until standard input ends.
pub(crate) async fn serve(args: BenchCoordinatorArgs) -> anyhow::Result<()> {
    let config = Config {
        http_addr: ([127, 0, 0, 1], 0).into(),
        grpc_addr: ([127, 0, 0, 1], 0).into(),
        tls: Some(fleet::material(&args.lab, Role::Coordinator, fleet::COORDINATOR)?),
        token_algorithm: args.algorithm,
        // One for each algorithm, so that the coordinator publishes no other key than the one it signs with.
        key_dir: args.lab.join(format!("keys-{}", args.algorithm)),
        // Agents register once and are silent from then on: what heartbeats cost is no cost of a request.
        heartbeat_timeout: MAX_HEARTBEAT_TIMEOUT,
        booking_timeout: BOOKING_TIMEOUT,
        ..Config::default()
    };
    let coordinator = Coordinator::bind(config).await?;
    report_to_parent(&Ports { http: coordinator.http_addr().port(), grpc: coordinator.grpc_addr().port() })?;
    coordinator.run(CancellationToken::new()).await?;
    Ok(())
}
