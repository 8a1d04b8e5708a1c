//! Clients that are killed leave nothing behind: no job, no memory.

use crate::support::{Process, Up, first_bytes};

/// Kills on each wire. `TITAN_KILLS=200` for the whole exercise.
fn kills() -> usize {
    std::env::var("TITAN_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20)
}

/// Connections and generations that leaked whole would be more than this each: a QUIC connection alone keeps some 100 kB.
const GROWTH_PER_KILL: u64 = 48 * 1024;
/// Allocators keep some of what they got.
const SLACK: u64 = 16 << 20;

#[tokio::test]
async fn killed_clients_free_their_slots_on_quic() {
    killed_clients_free_their_slots("quic").await;
}

#[tokio::test]
async fn killed_clients_free_their_slots_on_grpc() {
    killed_clients_free_their_slots("grpc").await;
}

async fn killed_clients_free_their_slots(wire: &str) {
    const AT_A_TIME: usize = 4;
    // More slots than that: the coordinator hears of an ended job a moment after the agent knows, and the next round may be
    // quicker. A job that stays is noticed by `idle`.
    let up = Up::synthetic(50, &["--max-jobs", "16"]);
    let mut before = None;
    for round in 0..kills().div_ceil(AT_A_TIME) {
        let mut running: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                // Not resumable: an answer whose client died would be kept for half a minute.
                let command = up.run(["--wire", wire, "--without", "resume", "--max-tokens", "1000000", "hello"]);
                Process::spawn(command, up.user.dir.path())
            })
            .collect();
        for (process, stdout) in &mut running {
            first_bytes(stdout);
            process.kill();
        }
        up.idle().await;
        // The first rounds fill caches and pools.
        if round == 1 {
            before = Some(up.process.resident_bytes());
        }
    }
    assert_eq!(up.status().await.healthy_agents, 1);
    let (before, after) = (before.unwrap(), up.process.resident_bytes());
    let allowed = SLACK + GROWTH_PER_KILL * kills() as u64;
    assert!(after < before + allowed, "memory grew from {before} to {after} bytes in {} kills", kills());
}
