//! The command line as people type it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use clap::{CommandFactory, Parser, error::ErrorKind};
use titan_transport::token::Algorithm;

use super::{Cli, Command, WireArg, serve::EngineKind, values};

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

/// What clap says about a line that it refuses.
fn refused(line: &str) -> String {
    let error = parse(line).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{line}");
    error.to_string()
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_environment_variable_of_the_contract_has_its_flag() {
    let mut variables = Vec::new();
    for command in Cli::command().get_subcommands() {
        let of_command = command.get_arguments().filter_map(|argument| argument.get_env());
        variables.extend(of_command.map(|variable| variable.to_string_lossy().into_owned()));
    }
    for expected in [
        "COORDINATOR_HTTP_PORT",
        "COORDINATOR_PORT",
        "AGENT_PORT",
        "AGENT_QUIC_PORT",
        "TOKEN_TTL",
        "HEARTBEAT_TIMEOUT",
        "AGENT_ID",
        "COORDINATOR_ENDPOINT",
        "PUBLIC_HOST",
        "MAX_CONCURRENT_JOBS",
        "SUPPORTED_MODELS",
        "HEARTBEAT_INTERVAL",
        "COORDINATOR_URL",
    ] {
        assert!(variables.iter().any(|variable| variable == expected), "{expected} is missing");
    }
}

#[test]
fn help_shows_examples_for_every_command_that_needs_them() {
    for name in ["run", "chat", "proxy", "up", "coord", "agent", "certs"] {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        assert!(help.contains("Examples:") && help.contains(&format!("titan {name}")), "{name}: {help}");
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let Command::Coord(coord) = parse("titan coord").unwrap() else { panic!("not coord") };
    assert_eq!((coord.coordinator.http_port, coord.coordinator.grpc_port), (8080, 50051));
    assert_eq!(coord.coordinator.token_ttl, Duration::from_secs(300));
    assert_eq!(coord.coordinator.token_algorithm, Algorithm::RS256);
    assert_eq!(coord.coordinator.heartbeat_timeout, Duration::from_secs(30));
    assert!(coord.listen.bind.is_loopback());
    let Command::Agent(agent) = parse("titan agent").unwrap() else { panic!("not agent") };
    assert_eq!((agent.agent_port, agent.quic_port, agent.engine.max_jobs), (50052, None, 4));
    assert_eq!(agent.heartbeat_interval, Duration::from_secs(10));
    assert_eq!(agent.coordinator, "localhost:50051");
    assert_eq!(agent.kind, EngineKind::Mistral);
    let Command::Run(run) = parse("titan run hello").unwrap() else { panic!("not run") };
    assert_eq!((run.max_tokens, run.temperature, run.wire), (None, 0.7, WireArg::Auto));
    assert_eq!(run.coordinator, None);
    assert!(!run.prefill_ahead && !coord.coordinator.prefill_ahead, "prompts go to the agent alone unless it is said");
    let Command::Up(up) = parse("titan up --prefill-ahead").unwrap() else { panic!("not up") };
    assert!(up.coordinator.prefill_ahead);
}

#[test]
fn an_engine_is_given_the_time_that_its_machine_needs() {
    let Command::Agent(agent) = parse("titan agent").unwrap() else { panic!("not agent") };
    assert_eq!(agent.engine.engine_timeout, Duration::from_secs(60));
    let Command::Up(up) = parse("titan up --engine-timeout 90").unwrap() else { panic!("not up") };
    assert_eq!(up.engine.engine_timeout, Duration::from_secs(90));
    for name in ["agent", "up"] {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        assert!(help.contains("--engine-timeout <SECONDS>") && help.contains("TITAN_ENGINE_TIMEOUT"), "{name}: {help}");
    }
}

#[test]
fn durations_have_a_unit_or_are_seconds() {
    for (text, milliseconds) in
        [("300s", 300_000), ("5m", 300_000), ("300", 300_000), ("1h", 3_600_000), ("1.5s", 1500), ("250ms", 250)]
    {
        assert_eq!(values::duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "s", "-5s", "5 minutes", "5d", "1e400", "0x10", "NaN", "inf", "1.2.3"] {
        assert!(values::duration(text).is_err(), "{text}");
    }
}

#[test]
fn a_value_out_of_range_is_named_with_its_flag() {
    for (line, flag, value) in [
        ("titan coord --token-ttl 0", "--token-ttl", "'0'"),
        ("titan coord --token-ttl 25h", "--token-ttl", "'25h'"),
        ("titan coord --heartbeat-timeout 10ms", "--heartbeat-timeout", "'10ms'"),
        ("titan coord --token-algorithm none", "--token-algorithm", "'none'"),
        ("titan coord --weights 1,2,3", "--weights", "'1,2,3'"),
        ("titan coord --weights 0,0,0,0", "--weights", "'0,0,0,0'"),
        ("titan coord --http-port 65536", "--http-port", "'65536'"),
        ("titan coord --bind localhost", "--bind", "'localhost'"),
        ("titan agent --max-jobs 0", "--max-jobs", "'0'"),
        ("titan agent --engine-timeout 0", "--engine-timeout", "'0'"),
        ("titan up --engine-timeout 2h", "--engine-timeout", "'2h'"),
        ("titan agent --engine gpt", "--engine", "'gpt'"),
        ("titan agent --engine synthetic --rate fast", "--rate", "'fast'"),
        ("titan up --agents 0", "--agents", "'0'"),
        ("titan run x --max-tokens 0", "--max-tokens", "'0'"),
        ("titan run x --temperature -1", "--temperature", "'-1'"),
        ("titan run x --temperature NaN", "--temperature", "'NaN'"),
        ("titan run x --option top_k", "--option", "'top_k'"),
        ("titan run x --coordinator ftp://a", "--coordinator", "'ftp://a'"),
        ("titan run x --coordinator http://a/api/v1", "--coordinator", "'http://a/api/v1'"),
        ("titan certs issue --name a --role root", "--role", "'root'"),
    ] {
        let message = refused(line);
        assert!(message.contains(flag) && message.contains(value), "{line}: {message}");
    }
}

#[test]
fn what_belongs_together_is_asked_for_together() {
    assert!(refused("titan agent --engine synthetic").contains("--rate"));
    assert!(refused("titan agent --cert cert.pem").contains("--ca"));
    assert!(refused("titan agent --certs d --ca a --cert b --key c").contains("--certs"));
    assert!(refused("titan up --synthetic 50 --model a.gguf").contains("--model"));
    assert!(refused("titan run x --prompt-file y").contains("--prompt-file"));
}

#[test]
fn options_reach_the_request_as_written() {
    let Command::Run(run) = parse("titan run x -o top_k=40 --option stop=a=b").unwrap() else { panic!("not run") };
    assert_eq!(run.options, [("top_k".into(), "40".into()), ("stop".into(), "a=b".into())]);
}

#[test]
fn a_coordinator_may_be_written_without_its_scheme() {
    assert_eq!(values::coordinator_url("gpu-box:8080").unwrap(), "http://gpu-box:8080");
    assert_eq!(values::coordinator_url("https://gpu-box:8080/").unwrap(), "https://gpu-box:8080");
    assert!(values::coordinator_url("").is_err());
}

#[test]
fn help_and_version_are_no_failures() {
    for (line, kind) in [("titan --help", ErrorKind::DisplayHelp), ("titan --version", ErrorKind::DisplayVersion)] {
        let error = parse(line).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (kind, 0));
    }
}
