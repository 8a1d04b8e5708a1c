//! What the environment says, before anything else looks at it.
//!
//! An empty variable counts as not set, for every flag that has one: container tools pass on what is not set as empty. Secrets are the
//! exception, whose own checks refuse them empty: a key that got lost must not open a door.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command, builder::Resettable};

/// Where mistral.rs and the hub's library keep models; the first one is the cache itself, the second one what it lies in.
const HUB_VARIABLES: [&str; 2] = ["HF_HUB_CACHE", "HF_HOME"];

/// The command line without the variables that say nothing, and what is to be said of them, each with the command that it is for. `lookup`
/// is the environment.
pub(crate) fn usable(
    command: Command,
    lookup: &dyn Fn(&OsStr) -> Option<OsString>,
) -> (Command, Vec<(String, String)>) {
    let mut notices = Vec::new();
    let command = command.mut_subcommands(|subcommand| {
        let name = subcommand.get_name().to_owned();
        let mut said = Vec::new();
        let subcommand = of_command(subcommand, lookup, &mut said);
        notices.extend(said.into_iter().map(|notice| (name.clone(), notice)));
        subcommand
    });
    (command, notices)
}

fn of_command(command: Command, lookup: &dyn Fn(&OsStr) -> Option<OsString>, notices: &mut Vec<String>) -> Command {
    let command = command.mut_args(|argument| of_argument(argument, lookup, notices));
    command.mut_subcommands(|subcommand| of_command(subcommand, lookup, notices))
}

fn of_argument(argument: Arg, lookup: &dyn Fn(&OsStr) -> Option<OsString>, notices: &mut Vec<String>) -> Arg {
    let Some(name) = argument.get_env().map(OsStr::to_owned) else { return argument };
    let Some(value) = lookup(&name) else { return argument };
    if let Some(notice) = of_kubernetes(&name, &value) {
        notices.push(notice);
    } else if !value.is_empty() || argument.is_hide_env_values_set() {
        return argument;
    }
    argument.env(Resettable::Reset)
}

/// Kubernetes tells every container the addresses of the services in its namespace: `COORDINATOR_PORT=tcp://10.0.0.1:50051` for one named
/// "coordinator". No port reads like that, and whoever sets the variable for the container replaces it.
fn of_kubernetes(name: &OsStr, value: &OsStr) -> Option<String> {
    let (name, value) = (name.to_str()?, value.to_str()?);
    let service = name.strip_suffix("_PORT")?.to_ascii_lowercase().replace('_', "-");
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)).then(|| {
        format!(
            "{name}={value} is not used: Kubernetes sets it, to the address of a service named {service:?}, where this program expects the \
             number of a port. Set {name} to one in the pod, or rename the service; enableServiceLinks: false leaves such variables out"
        )
    })
}

/// Puts right for libraries what they do not expect of an environment: to be called before there are threads.
pub(crate) fn prepare() {
    let is_empty = |name: &&str| std::env::var_os(name).is_some_and(|value| value.is_empty());
    for name in HUB_VARIABLES.iter().copied().filter(is_empty) {
        // SAFETY: there is one thread yet, and so nobody who reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    let is_told = HUB_VARIABLES.iter().any(|name| std::env::var_os(name).is_some());
    let has_home = std::env::home_dir().is_some_and(|home| !home.as_os_str().is_empty());
    if let Some(cache) = titan_files::cache_dir().filter(|_| !is_told && !has_home) {
        // Without a home mistral.rs would keep its lists of files in the working directory, and the hub's library would panic.
        // SAFETY: as above.
        unsafe { std::env::set_var("HF_HOME", cache.join("huggingface")) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{CommandFactory as _, FromArgMatches as _};

    use std::collections::BTreeSet;

    use super::*;
    use crate::args::{self, Cli};

    /// What a command line means in this environment, and what is said of it.
    fn read(line: &str, environment: &[(&str, &str)]) -> (Result<args::Command, clap::Error>, Vec<(String, String)>) {
        let lookup = |name: &OsStr| {
            environment
                .iter()
                .find(|(variable, _)| OsStr::new(variable) == name)
                .map(|(_, value)| OsString::from(value))
        };
        let (command, notices) = usable(Cli::command(), &lookup);
        let matches = command.try_get_matches_from(line.split(' '));
        (matches.and_then(|matches| Cli::from_arg_matches(&matches)).map(|cli| cli.command), notices)
    }

    /// The variables of a command, which `usable` has left in it.
    fn left(command: &Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(Arg::get_env).map(|name| name.to_string_lossy().into_owned());
        own.chain(command.get_subcommands().flat_map(left)).collect()
    }

    #[test]
    fn every_empty_variable_counts_as_not_set_but_for_secrets() {
        let (command, notices) = usable(Cli::command(), &|_| Some(OsString::new()));
        let secrets: BTreeSet<String> = left(&command).into_iter().collect();
        assert_eq!((secrets, notices.len()), (["TITAN_API_KEY", "TITAN_PROXY_KEY"].map(str::to_owned).into(), 0));
        let (command, _) = usable(Cli::command(), &|_| Some("1".into()));
        assert_eq!(left(&command).len(), left(&Cli::command()).len());
    }

    #[test]
    fn the_address_of_a_service_is_no_port_to_listen_on() {
        let kubernetes = [("COORDINATOR_PORT", "tcp://10.0.0.1:50051"), ("AGENT_QUIC_PORT", "udp://10.0.0.2:50052")];
        let (command, notices) = read("titan coord", &kubernetes);
        let args::Command::Coord(coord) = command.unwrap() else { panic!("not coord") };
        assert_eq!(coord.coordinator.grpc_port, 50051);
        let said: Vec<&str> = notices.iter().filter(|(of, _)| of == "coord").map(|(_, said)| said.as_str()).collect();
        let [said] = said[..] else { panic!("{notices:?}") };
        for part in ["COORDINATOR_PORT=tcp://10.0.0.1:50051", "Kubernetes", "\"coordinator\"", "enableServiceLinks"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(notices.iter().any(|(of, said)| of == "agent" && said.contains("\"agent-quic\"")), "{notices:?}");
    }

    #[test]
    fn other_values_are_left_to_those_who_read_them() {
        for (name, value) in
            [("COORDINATOR_PORT", "50051"), ("COORDINATOR_PORT", "many"), ("COORDINATOR_URL", "tcp://x:1")]
        {
            assert_eq!(of_kubernetes(name.as_ref(), value.as_ref()), None, "{name}={value}");
        }
    }
}
