//! The command line: every flag, its environment variable, and its default.
//!
//! Values that can be checked alone are checked here (`values`), so that the error names the flag and the value. What fits
//! together is checked by each part's own `Config::validate`, before anything is bound.

#[cfg_attr(not(feature = "engines"), allow(dead_code, reason = "the command line is the same in every build"))]
pub(crate) mod demo;
pub(crate) mod keys;
#[cfg_attr(not(feature = "engines"), allow(dead_code, reason = "the command line is the same in every build"))]
pub(crate) mod serve;
pub(crate) mod values;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use titan_certs::{LEAF_DAYS, Role};
use titan_client::Feature;
use titan_proto::{COORDINATOR_HTTP_PORT, DEFAULT_TEMPERATURE};

pub(crate) use self::serve::{AgentArgs, CoordArgs, UpArgs};
use crate::environment;

/// Streams LLM tokens straight from the machine that runs the model to the client, over QUIC.
///
/// A coordinator answers one question: which agent should serve this request? The client then streams from that agent
/// directly, over QUIC with mutual TLS, or over standard gRPC where UDP is blocked.
#[derive(Debug, Parser)]
#[command(name = "titan", version, after_help = EXAMPLES, max_term_width = 110, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Say more on stderr; twice for debugging. RUST_LOG, where it is set, decides alone.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
}

impl Cli {
    /// The command line of this process, or the end of it where it is none. Also what is to be said of its environment.
    pub(crate) fn read() -> (Self, Vec<String>) {
        let (command, mut notices) = environment::usable(Self::command(), &|name| std::env::var_os(name));
        let matches = command.get_matches();
        notices.retain(|(of, _)| matches.subcommand_name() == Some(of));
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut Self::command()).exit());
        (cli, notices.into_iter().map(|(_, notice)| notice).collect())
    }
}

const EXAMPLES: &str = "\
Examples:
  titan run \"Why is the sky blue?\"        a small model on this machine, nothing to prepare
  titan run --model ./qwen.gguf \"Hello\"   the same with a model of your own
  titan up                                a local cluster, for titan run, curl and Python beside it
  titan chat                              a conversation in the terminal
  titan proxy                             the OpenAI API on this machine, over QUIC to the agents
  titan certs init                        a private CA, for a cluster of several machines
  titan demo roaming                      what a change of network does to a stream, over gRPC and over QUIC

Directories (each can be moved by its environment variable):
  TITAN_DATA_DIR    certificates, signing keys, API keys, usage [default: ~/.local/share/titan]
  TITAN_CACHE_DIR   models that titan has fetched, TLS sessions [default: ~/.cache/titan]
An environment variable that is empty counts as not set.

Signals: SIGTERM and SIGINT stop a server when its running generations have finished, a second one at once. SIGHUP has it read its
certificates again.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    // The documentation of each stands at its arguments: one here would hide that.
    Run(RunArgs),
    Chat(ChatArgs),
    Proxy(ProxyArgs),
    Models(AskArgs),
    Status(StatusArgs),
    Up(UpArgs),
    Coord(CoordArgs),
    Agent(AgentArgs),
    #[command(subcommand)]
    Certs(CertsCommand),
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    Usage(keys::UsageArgs),
    #[command(subcommand)]
    Demo(demo::DemoCommand),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  source <(titan completions bash)                for this shell
  titan completions zsh > ~/.zfunc/_titan
  titan completions fish > ~/.config/fish/completions/titan.fish";

/// Write manual pages, one for each command.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// Where; it is made if it is not there.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

const MAN_EXAMPLES: &str = "\
Examples:
  titan man ~/.local/share/man/man1 && man titan-run";

/// Send one prompt and print the text as it arrives.
///
/// The coordinator chooses an agent (REST); the text then streams from that agent directly (QUIC, or gRPC). The text goes
/// to stdout, everything else to stderr. If no coordinator was named and none answers on this machine, a local cluster
/// is brought up in this process, with a small model that is fetched once (98 MB).
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// The prompt; `-`, or none where stdin is no terminal, reads it from stdin.
    pub(crate) prompt: Option<String>,
    /// The prompt is what this file holds.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// The coordinator's REST address [default: http://localhost:8080, or a local cluster if none answers there]
    #[arg(long, env = "COORDINATOR_URL", value_name = "URL", value_parser = values::coordinator_url)]
    pub(crate) coordinator: Option<String>,
    /// The model's name [default: the default model, or the only one there is]. For a local cluster also a .gguf file,
    /// a directory of safetensors, a name on the Hugging Face hub, or NAME=SOURCE.
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// For a local cluster a chat template in place of the model's own: a Jinja file, or JSON with the field chat_template.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<String>,
    /// What to stream over: `auto` prefers QUIC and falls back to gRPC where UDP does not answer.
    #[arg(long, value_enum, default_value_t = WireArg::Auto)]
    pub(crate) wire: WireArg,
    /// Most tokens to generate [default: as many as the model wants]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = DEFAULT_TEMPERATURE, value_parser = values::temperature, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// What the model shall be like, as the system's message before the prompt.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A file with a JSON schema: the text is JSON that it describes.
    #[arg(long, value_name = "FILE")]
    pub(crate) schema: Option<PathBuf>,
    /// The same seed, the same text.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Choose among the likeliest tokens that have this much of the probability together.
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// End the text before this one.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Option<String>,
    /// Any other sampling option, as KEY=VALUE: top_k, min_p, frequency_penalty, presence_penalty. May be repeated.
    #[arg(long = "option", short = 'o', value_name = "KEY=VALUE", value_parser = values::key_value)]
    pub(crate) options: Vec<(String, String)>,
    /// One JSON object per line: {"text": …} as it arrives, then {"done": true, …} with the figures.
    #[arg(long)]
    pub(crate) json: bool,
    /// Send the same request so often, one after another, with one client: shows the kept route, and with -v the handshakes.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Close the connection between repetitions: with -v shows that the next one begins with early data (0-RTT).
    #[arg(long)]
    pub(crate) reconnect: bool,
    /// Send the prompt to the coordinator too, which lets the agent begin with it while this program still connects. Of use where the
    /// coordinator runs with --prefill-ahead, and for a first request: a kept route asks no coordinator.
    #[arg(long)]
    pub(crate) prefill_ahead: bool,
    /// Switch a feature off, to see what it is worth: redundancy, thin-stream, early-data, stored-sessions, migration, resume, move,
    /// repeat-first. May be repeated.
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub(crate) without: Vec<Feature>,
    /// Begin QUIC handshakes with the post-quantum hybrid key exchange X25519MLKEM768: one packet more.
    #[arg(long)]
    pub(crate) post_quantum: bool,
    #[command(flatten)]
    pub(crate) key: keys::KeyArgs,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

const RUN_EXAMPLES: &str = "\
Examples:
  titan run \"Why is the sky blue?\"
  git diff | titan run --temperature 0 -m ./qwen.gguf            (the prompt from stdin)
  titan run --coordinator http://gpu-box:8080 -m llama3 \"Hello\"   (a cluster elsewhere)
  titan run --json --wire grpc \"Hello\" | jq -r .text
  titan run -v --repeat 3 --reconnect \"Hello\"                    (route kept, 0-RTT)

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 129 and 143 ended by SIGHUP and SIGTERM.";

/// Talk to a model in the terminal.
///
/// A conversation that goes on where it was: Ctrl-C stops an answer and not the program, /help says what else there is.
#[derive(Debug, Args)]
#[command(after_help = CHAT_EXAMPLES)]
pub(crate) struct ChatArgs {
    /// The coordinator's REST address.
    #[arg(long, env = "COORDINATOR_URL", default_value_t = format!("http://localhost:{COORDINATOR_HTTP_PORT}"), value_name = "URL", value_parser = values::coordinator_url)]
    pub(crate) coordinator: String,
    /// The model's name [default: the first one that is served]
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// What the model shall be like.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer [default: as many as the model wants]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = DEFAULT_TEMPERATURE, value_parser = values::temperature, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// What to stream over: `auto` prefers QUIC and falls back to gRPC where UDP does not answer.
    #[arg(long, value_enum, default_value_t = WireArg::Auto)]
    pub(crate) wire: WireArg,
    /// Switch a feature off, as `titan run` does.
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub(crate) without: Vec<Feature>,
    #[command(flatten)]
    pub(crate) key: keys::KeyArgs,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

const CHAT_EXAMPLES: &str = "\
Examples:
  titan chat                                            with the default model of titan up
  titan chat --coordinator http://gpu-box:8080 -m llama3 --system \"Be brief.\"";

/// Show the models that agents serve.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The coordinator's REST address.
    #[arg(long, env = "COORDINATOR_URL", default_value_t = format!("http://localhost:{COORDINATOR_HTTP_PORT}"), value_name = "URL", value_parser = values::coordinator_url)]
    pub(crate) coordinator: String,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) key: keys::KeyArgs,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

/// Show the agents of a coordinator, and how busy they are.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Look again every 2 s, until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Serve the OpenAI API on this machine, carried to the agents over the fast path.
///
/// Applications that speak OpenAI's API point their base URL here and need nothing else. Their text then comes over QUIC: it does not stutter
/// when packets are lost, goes on when this machine changes its network, and when an agent is lost it goes on at another one.
#[derive(Debug, Args)]
#[command(after_help = PROXY_EXAMPLES)]
pub(crate) struct ProxyArgs {
    /// The coordinator's REST address. It need not be up yet.
    #[arg(long, env = "COORDINATOR_URL", default_value_t = format!("http://localhost:{COORDINATOR_HTTP_PORT}"), value_name = "URL", value_parser = values::coordinator_url)]
    pub(crate) coordinator: String,
    /// Where applications reach it. An address that other machines can reach needs --require-key.
    #[arg(long, env = "TITAN_PROXY_LISTEN", default_value = "127.0.0.1:8787", value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// The key that applications have to show to this proxy. Better in the variable, since others on this machine see command lines.
    #[arg(long, env = "TITAN_PROXY_KEY", hide_env_values = true, value_name = "KEY", value_parser = values::api_key)]
    pub(crate) require_key: Option<String>,
    #[command(flatten)]
    pub(crate) key: keys::KeyArgs,
    /// What to stream over: `auto` prefers QUIC and falls back to gRPC where UDP does not answer.
    #[arg(long, value_enum, default_value_t = WireArg::Auto)]
    pub(crate) wire: WireArg,
    /// Switch a feature off, to see what it is worth: redundancy, thin-stream, early-data, migration, resume, move, repeat-first. May be
    /// repeated.
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub(crate) without: Vec<Feature>,
    /// Print where it listens as one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Between two looks at the files of its certificate: what has changed is used from the next request on.
    #[arg(long, env = "TITAN_CHECK_CERTS", default_value = "60s", value_name = "TIME", value_parser = values::check_certs)]
    pub(crate) check_certs: Duration,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

const PROXY_EXAMPLES: &str = "\
Examples:
  titan proxy                                            for a coordinator on this machine
  titan proxy --coordinator https://coord.example:8080   for one elsewhere
  OPENAI_BASE_URL=http://127.0.0.1:8787/v1 OPENAI_API_KEY=any python app.py";

/// Where this program's certificate is.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct IdentityArgs {
    /// The directory of certificates (`titan certs`) [default: the user's own]
    #[arg(long, env = "TITAN_CERTS", value_name = "DIR", conflicts_with_all = ["ca", "cert", "key"])]
    pub(crate) certs: Option<PathBuf>,
    /// The private CA's certificate, instead of --certs. Alone it is enough for a client that shows no certificate: it streams over gRPC.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// This program's certificate, instead of --certs.
    #[arg(long, value_name = "FILE", requires = "ca", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's private key, instead of --certs.
    #[arg(long, value_name = "FILE", requires = "ca", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

/// A wire, or the choice left to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WireArg {
    /// QUIC where it answers, gRPC otherwise.
    Auto,
    /// QUIC only.
    Quic,
    /// gRPC (HTTP/2) only.
    Grpc,
}

/// Make and show certificates.
///
/// One private CA for a cluster; every coordinator, agent and client gets a certificate of it. The CA's key stays on the
/// machine that issues; other machines get `ca.pem` and their own pair.
#[derive(Debug, Subcommand)]
#[command(after_help = CERTS_EXAMPLES)]
pub(crate) enum CertsCommand {
    /// Make the CA, unless there is one.
    Init(DirArgs),
    /// Issue a certificate, or renew one: the CA stays.
    Issue(IssueArgs),
    /// Show the CA and every certificate beside it.
    Show(ShowArgs),
}

const CERTS_EXAMPLES: &str = "\
Examples:
  titan certs init
  titan certs issue --role coordinator --name coordinator --host gpu-box.example
  titan certs issue --role agent --name agent-1 --host 192.0.2.7
  titan certs issue --role client --name laptop
  titan certs show";

/// The directory alone.
#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// The directory of certificates [default: the user's own]
    #[arg(long = "certs", alias = "dir", env = "TITAN_CERTS", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// What to issue.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    /// What its holder may act as: coordinator, agent or client.
    #[arg(long, value_parser = clap::value_parser!(Role))]
    pub(crate) role: Role,
    /// Its holder's name; for an agent, the agent's id.
    #[arg(long)]
    pub(crate) name: String,
    /// A host name or address under which its holder is dialled. May be repeated.
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Its life in days.
    #[arg(long, default_value_t = LEAF_DAYS)]
    pub(crate) days: u32,
}

/// How to show.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) dir: DirArgs,
    /// As one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Listening and trust, common to `coord` and `agent`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListenArgs {
    /// The address to listen on. One that other machines can reach needs certificates.
    #[arg(long, env = "TITAN_BIND", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(crate) bind: IpAddr,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    /// A certificate of a public CA with its chain, for applications that know no private one, such as the OpenAI packages. It is shown to those who ask for
    /// a name in it and do not say that they trust the private CA; QUIC, agents and titan's own clients keep the private one.
    #[arg(long, env = "TITAN_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, env = "TITAN_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Between two looks at the files of certificates: what has changed is used from the next connection on.
    #[arg(long, env = "TITAN_CHECK_CERTS", default_value = "60s", value_name = "TIME", value_parser = values::check_certs)]
    pub(crate) check_certs: Duration,
    /// Accept plain text from other machines too. Everyone on the way can then read prompts, texts and tokens.
    #[arg(long)]
    pub(crate) insecure_plaintext: bool,
}

#[cfg(test)]
mod tests;
