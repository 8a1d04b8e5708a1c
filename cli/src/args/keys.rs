//! The flags of API keys: those who show one, and `titan keys` and `titan usage`, which manage them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::values;

/// The key of a client.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct KeyArgs {
    /// The API key for a coordinator that asks for one. Better in the variable, since others on this machine see command lines.
    #[arg(long, env = "TITAN_API_KEY", hide_env_values = true, value_name = "KEY", value_parser = values::api_key)]
    pub(crate) api_key: Option<String>,
}

/// Make, show, limit and revoke API keys.
///
/// A coordinator that other machines reach answers those alone who show a key (or a client certificate of the private CA); one on this
/// machine does so as soon as there is a key. Run it where the coordinator's signing keys are: a coordinator that runs takes changes up within a second.
#[derive(Debug, Subcommand)]
#[command(after_help = KEYS_EXAMPLES)]
pub(crate) enum KeysCommand {
    /// Make a key, and print it: it is stored nowhere else.
    Add(AddKeyArgs),
    /// Show the keys, without their secrets.
    List(ListKeysArgs),
    /// End a key, by its name or id.
    Revoke(RevokeKeyArgs),
    /// Change what a key may be used for; what is not named stays as it is.
    Limit(LimitKeyArgs),
}

const KEYS_EXAMPLES: &str = "\
Examples:
  titan keys add alice
  titan keys add batch --concurrent 4 --tokens-per-minute 100000 --priority 10
  titan keys limit alice --requests-per-second 5 --models llama3,qwen
  titan keys limit alice --requests-per-second none
  titan keys revoke alice
  TITAN_API_KEY=titan-… titan run --coordinator https://coord.example:8080 \"Hello\"
  OPENAI_API_KEY=titan-… OPENAI_BASE_URL=https://coord.example:8080/v1 python app.py";

/// Where the keys are.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeyDirArgs {
    /// The directory of the coordinator's signing keys [default: `keys` in the data directory]
    #[arg(long, env = "TITAN_KEYS", value_name = "DIR")]
    pub(crate) key_dir: Option<PathBuf>,
}

/// A new key.
#[derive(Debug, Args)]
pub(crate) struct AddKeyArgs {
    /// Whose it is; it stands in the usage log.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Print the key and what belongs to it as one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The directory of certificates: the key ends with its CA's fingerprint, by which a new client knows the coordinator [default: the user's own]
    #[arg(long, env = "TITAN_CERTS", value_name = "DIR")]
    pub(crate) certs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) dir: KeyDirArgs,
}

/// How to show keys.
#[derive(Debug, Args)]
pub(crate) struct ListKeysArgs {
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) dir: KeyDirArgs,
}

/// A key to end.
#[derive(Debug, Args)]
pub(crate) struct RevokeKeyArgs {
    /// Its name or id.
    #[arg(value_name = "NAME|ID")]
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) dir: KeyDirArgs,
}

/// A key to limit.
#[derive(Debug, Args)]
pub(crate) struct LimitKeyArgs {
    /// Its name or id.
    #[arg(value_name = "NAME|ID")]
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) dir: KeyDirArgs,
}

/// What a key may be used for.
#[derive(Clone, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Requests that may begin within a second; `none` for any number.
    #[arg(long, value_name = "N|none", value_parser = values::limit)]
    pub(crate) requests_per_second: Option<Limit>,
    /// Tokens, read and written, within a minute; `none` for any number. They count when an answer ends.
    #[arg(long, value_name = "N|none", value_parser = values::limit)]
    pub(crate) tokens_per_minute: Option<Limit>,
    /// Generations at the same time; `none` for any number.
    #[arg(long, value_name = "N|none", value_parser = values::limit)]
    pub(crate) concurrent: Option<Limit>,
    /// The models that it may be used with, separated by commas; `all` for all.
    #[arg(long, value_name = "NAMES|all", value_delimiter = ',')]
    pub(crate) models: Option<Vec<String>>,
    /// Who goes first where there is no room for all: 0 to 255, a larger number goes first [default: 128]
    #[arg(long, value_name = "N")]
    pub(crate) priority: Option<u8>,
}

/// A number, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// So many.
    To(u32),
    /// Any number.
    Lifted,
}

impl Limit {
    /// As the coordinator has it.
    pub(crate) fn number(self) -> Option<u32> {
        match self {
            Self::To(number) => Some(number),
            Self::Lifted => None,
        }
    }
}

/// Show what was generated, and for whom.
///
/// It reads the coordinator's usage log: one line of JSON for each generation, also for those that broke off. No prompt is in it.
#[derive(Debug, Args)]
#[command(after_help = USAGE_EXAMPLES)]
pub(crate) struct UsageArgs {
    /// The log [default: `usage.jsonl` in the data directory]
    #[arg(long, env = "TITAN_USAGE_LOG", value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Only what ended within this time: 24h, 30m [default: all that the log has]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) since: Option<Duration>,
    /// What to add up by.
    #[arg(long, value_enum, default_value_t = By::Key, value_name = "WHAT")]
    pub(crate) by: By,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const USAGE_EXAMPLES: &str = "\
Examples:
  titan usage                                     by key, since the log began
  titan usage --since 24h --by model
  jq -r .outcome ~/.local/share/titan/usage.jsonl | sort | uniq -c";

/// What usage is added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// The API key.
    Key,
    /// The model.
    Model,
    /// The agent that ran it.
    Agent,
    /// What the client calls itself.
    Client,
}
