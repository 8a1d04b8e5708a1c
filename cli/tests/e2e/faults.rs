//! What the client library makes of a cluster that is full, or without its coordinator.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all};
use titan_client::{Prompt, TitanClient, WirePreference};

use crate::{
    moves::agent,
    parts::coordinator,
    support::{User, synthetic_text},
};

const TOKENS: u32 = 10;

async fn say(client: &TitanClient) -> (String, bool) {
    let prompt = Prompt { max_tokens: TOKENS, ..Prompt::new("synthetic", "hello") };
    let mut generation = client.generate(prompt).await.unwrap();
    let mut text = String::new();
    while let Some(piece) = generation.next().await {
        text.push_str(&piece.unwrap());
    }
    (text, generation.routed())
}

#[tokio::test]
async fn sixty_four_clients_at_once_on_four_slots_are_all_answered() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let _agent = agent(&user, "agent-1", &grpc);
    let tls = user.client_tls();
    let clients: Vec<_> = (0..64)
        .map(|number| {
            let wire = [WirePreference::Quic, WirePreference::Grpc, WirePreference::Auto][number % 3];
            TitanClient::builder(&rest).tls(tls.clone()).wire(wire).build().unwrap()
        })
        .collect();
    for (text, _) in join_all(clients.iter().map(say)).await {
        assert_eq!(text, synthetic_text(TOKENS));
    }
}

#[tokio::test]
async fn requests_go_on_without_the_coordinator_while_their_tokens_are_good() {
    let user = User::new();
    let (mut coord, rest, grpc) = coordinator(&user);
    let _agent = agent(&user, "agent-1", &grpc);
    let client = TitanClient::builder(&rest).tls(user.client_tls()).deadline(Duration::from_secs(60)).build().unwrap();
    assert_eq!(say(&client).await, (synthetic_text(TOKENS), true));
    coord.kill();
    // More of them than there are routes.
    for (text, routed) in join_all((0..4).map(|_| say(&client))).await {
        assert_eq!((text, routed), (synthetic_text(TOKENS), false));
    }
}
