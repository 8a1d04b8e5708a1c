//! A build without engines brings no cluster up: the other half of `cluster.rs`.

use super::target::Target;
use crate::{args::RunArgs, commands::no_engines};

/// There is none.
pub(super) enum Cluster {}

impl Cluster {
    pub(super) async fn stop(self) {
        match self {}
    }
}

/// Says what this build lacks, and what to do.
pub(super) async fn start(_: &RunArgs) -> anyhow::Result<Target> {
    no_engines::refuse_to_run()
}
