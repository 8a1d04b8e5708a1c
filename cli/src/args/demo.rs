//! The flags of the demonstrations.

use clap::{Args, Subcommand};
use titan_emulator::Loss;

/// As many as can be compared with the whole answer in a moment; a minute and a half at the default rate.
pub(crate) const MAX_TOKENS: i64 = 2000;
/// Fewer leave no time between the events.
const MIN_TOKENS: i64 = 20;
/// Two satellites' worth: longer round trips show nothing more.
const MAX_RTT_MS: u64 = 2000;

/// Watch what Titan does that others do not.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum DemoCommand {
    Roaming(RoamingArgs),
}

const EXAMPLES: &str = "\
Examples:
  titan demo roaming                              a client on the move, over gRPC and over QUIC
  titan demo roaming --openai                     an application on the move, without and with titan proxy";

/// Play the same answer over gRPC and over QUIC, side by side, on a bad network.
///
/// Two emulated hosts on this machine, and a path between them with a delay and losses; on one a coordinator and two agents, on
/// the other two clients. Half-way the clients' address changes, as from Wi-Fi to cellular; near the end the agent is killed.
/// On the left is standard gRPC over TLS, on the right Titan over QUIC; with --openai, applications that speak the OpenAI API and know
/// nothing of Titan. The engine is synthetic: it says the words of a book.
///
/// It needs root, or a system that allows everyone user namespaces and /dev/net/tun. Nothing is left behind.
#[derive(Clone, Debug, Args)]
#[command(after_help = ROAMING_EXAMPLES)]
pub(crate) struct RoamingArgs {
    /// The path's round-trip time in milliseconds.
    #[arg(long, default_value_t = 100, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=MAX_RTT_MS))]
    pub(crate) rtt: u64,
    /// Packets lost each way, in percent; 3x2 is 3 % in bursts of 2 packets on average.
    #[arg(long, default_value = "3", value_name = "LOSS")]
    pub(crate) loss: Loss,
    /// Tokens of the answer.
    #[arg(long, default_value_t = 240, value_name = "N", value_parser = clap::value_parser!(u32).range(MIN_TOKENS..=MAX_TOKENS))]
    pub(crate) tokens: u32,
    /// Tokens per second.
    #[arg(long, default_value_t = 20, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rate: u32,
    /// The same seed loses the same packets, as far as both send the same.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// Play it to two clients of the OpenAI API: one streams over HTTPS straight from the agent, one from `titan proxy` beside it.
    #[arg(long)]
    pub(crate) openai: bool,
    /// With --openai: a program of yours as both clients, with its arguments, in place of the one built in. It finds OPENAI_BASE_URL, OPENAI_API_KEY, SSL_CERT_FILE,
    /// TITAN_MODEL and TITAN_TOKENS in its environment, and prints each piece of text as a JSON string on a line, the first one when its request is accepted.
    #[arg(long, value_name = "COMMAND", requires = "openai")]
    pub(crate) client: Option<String>,
    /// One JSON object per line: what is heard and what happens, then {"done": true, …} with the figures.
    #[arg(long)]
    pub(crate) json: bool,
}

const ROAMING_EXAMPLES: &str = "\
Examples:
  titan demo roaming
  titan demo roaming --openai                     applications, without and with titan proxy
  titan demo roaming --rtt 300 --loss 5x3         a worse network: losses in bursts
  titan demo roaming --json | jq -c 'select(.done)'";
