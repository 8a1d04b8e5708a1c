//! A client with a directory of sessions stands for a process.

use titan_client::{ClientStats, Feature};
use titan_proto::rest::GrpcTls;

use crate::{World, builder, relay::Relay, say, soon};

/// One process: says something, and ends.
async fn visit(world: &World, dir: &std::path::Path, features: &[Feature]) -> ClientStats {
    let builder = builder(&world.coordinator).sessions(dir);
    let client = features.iter().fold(builder, |builder, &off| builder.without(off)).build().unwrap();
    assert_eq!(say(&client, "one two").await.0, "one two");
    // To close the client waits for that too, but not for as long as a busy machine may take.
    soon(async { while !client.save_sessions().await {} }).await;
    client.close().await;
    client.stats()
}

#[tokio::test]
async fn the_next_process_sends_its_prompt_as_early_data() {
    let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
    let relay = Relay::far(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    assert_eq!(visit(&world, dir.path(), &[]).await.quic.full_handshakes, 1);
    for _ in 0..4 {
        let quic = visit(&world, dir.path(), &[]).await.quic;
        assert_eq!((quic.full_handshakes, quic.stored_sessions, quic.early_calls), (0, 1, 1));
    }
}

#[tokio::test]
async fn stored_sessions_can_be_switched_off() {
    let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
    let sessions = dir.path().join("sessions");
    for _ in 0..2 {
        let quic = visit(&world, &sessions, &[Feature::StoredSessions]).await.quic;
        assert_eq!((quic.full_handshakes, quic.early_data_accepted), (1, 0));
    }
    assert!(!sessions.exists());
}

#[tokio::test]
async fn without_early_data_a_stored_session_waits_for_the_handshake() {
    let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
    visit(&world, dir.path(), &[]).await;
    let quic = visit(&world, dir.path(), &[Feature::EarlyData]).await.quic;
    assert_eq!((quic.early_calls, quic.early_data_accepted), (0, 0));
}
