//! A client of agents, as the flags of several commands describe it.

use titan_client::{Builder, Feature, TitanClient, WirePreference};
use titan_transport::tls::TlsMaterial;

use crate::args::{WireArg, keys::KeyArgs};

pub(super) fn builder(
    url: &str,
    wire: WireArg,
    tls: Option<TlsMaterial>,
    key: &KeyArgs,
    without: &[Feature],
) -> Builder {
    let mut builder = TitanClient::builder(url).wire(match wire {
        WireArg::Auto => WirePreference::Auto,
        WireArg::Quic => WirePreference::Quic,
        WireArg::Grpc => WirePreference::Grpc,
    });
    if let Some(key) = &key.api_key {
        builder = builder.api_key(key);
    }
    if let Some(tls) = tls {
        builder = builder.tls(tls);
    }
    without.iter().fold(builder, |builder, &feature| builder.without(feature))
}
