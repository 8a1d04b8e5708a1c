//! What environments bring with them: nothing at all, empty variables, Kubernetes, a full disk.

use std::fs;

use serde_json::Value;

use crate::support::{Process, Up, User, stderr, stdout};

#[test]
fn empty_variables_count_as_not_set() {
    let up = Up::synthetic(0, &[]);
    let mut run = up.user.titan(["run", "--coordinator", &up.rest, "--max-tokens", "2", "hello"]);
    for variable in ["TITAN_CERTS", "COORDINATOR_URL", "HF_HOME", "HF_HUB_CACHE"] {
        run.env(variable, "");
    }
    let done = run.output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    let mut models = up.user.titan(["models", "--coordinator", &up.rest]);
    assert!(models.env("TITAN_CERTS", "").output().unwrap().status.success());
    let mut proxy = up.user.titan(["proxy", "--listen", "127.0.0.1:0"]);
    let refused = proxy.env("TITAN_API_KEY", "").output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "a key that got lost opens no door");
    assert!(stderr(&refused).contains("TITAN_API_KEY"), "{}", stderr(&refused));
}

#[test]
fn the_addresses_that_kubernetes_sets_are_no_ports() {
    let user = User::new();
    let mut command = user.titan("coord --http-port 0 --token-algorithm EdDSA".split(' '));
    // The default port may be taken on this machine: what counts is that it was tried, or had.
    command.env("COORDINATOR_PORT", "tcp://10.0.0.1:50051");
    let (mut coord, _) = Process::spawn(command, user.dir.path());
    let said: Value = coord.logged("Kubernetes");
    let message = said["message"].as_str().unwrap();
    assert!(message.contains("COORDINATOR_PORT=tcp://10.0.0.1:50051 is not used"), "{message}");
}

#[test]
fn without_a_home_it_is_said_what_to_set() {
    let user = User::new();
    let homeless = |arguments: &str| {
        let mut command = user.titan(arguments.split(' '));
        command.env_remove("TITAN_DATA_DIR").env_remove("XDG_DATA_HOME").env("HOME", "");
        command.current_dir(user.dir.path());
        command
    };
    // The system may know this user's home without being told: then there is nothing to say.
    let has_home = fs::read_to_string("/etc/passwd").is_ok_and(|users| {
        let id = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let id = id.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()).unwrap_or_default();
        users.lines().any(|line| line.split(':').nth(2) == Some(id))
    });
    if has_home {
        println!("skipped: /etc/passwd knows a home for this user");
        return;
    }
    for arguments in ["certs show", "coord --http-port 0 --grpc-port 0"] {
        let refused = homeless(arguments).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains("TITAN_DATA_DIR"), "{}", stderr(&refused));
    }
    assert!(!user.dir.path().join("titan").exists(), "nothing is put into the working directory");
}

#[test]
fn a_disk_that_is_full_leaves_no_half_of_a_ca() {
    let user = User::new();
    let titan = env!("CARGO_BIN_EXE_titan");
    // No file may have a byte.
    let refused = user.bash(&format!("ulimit -f 0; exec {titan} certs init")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    let certs = user.certs().path().to_owned();
    assert!(stderr(&refused).contains(&*certs.to_string_lossy()), "{}", stderr(&refused));
    let left: Vec<_> = fs::read_dir(user.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    // And where the directory is there already, for another reason.
    fs::create_dir(&certs).unwrap();
    let refused = user.bash(&format!("ulimit -f 0; exec {titan} certs init")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    let made = user.output(["certs", "init"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let before = user.output(["certs", "issue", "--role", "client", "--name", "laptop"]);
    assert!(before.status.success());
    let pair = || ["client-laptop.pem", "client-laptop.key"].map(|file| fs::read(certs.join(file)).unwrap());
    let kept = pair();
    let script = format!("ulimit -f 0; exec {titan} certs issue --role client --name laptop");
    assert_eq!(user.bash(&script).output().unwrap().status.code(), Some(1));
    assert_eq!(pair(), kept, "the old pair, whole");
}

#[test]
fn files_of_windows_editors_are_read() {
    let up = Up::synthetic(0, &[]);
    let dir = up.user.dir.path();
    let (prompt, wide) = (dir.join("prompt.txt"), dir.join("wide.txt"));
    fs::write(&prompt, "\u{feff}hello").unwrap();
    fs::write(&wide, b"\xff\xfeh\0i\0").unwrap();
    let run = |file: &std::path::Path| {
        up.run(["--max-tokens", "2", "--prompt-file", &file.display().to_string()]).output().unwrap()
    };
    assert!(run(&prompt).status.success());
    assert!(stderr(&run(&wide)).contains("UTF-16"), "{}", stderr(&run(&wide)));
    let certs = up.user.certs();
    for file in [certs.ca_pem(), certs.leaf_pem(titan_certs::Role::Client, "cli")] {
        if let Ok(text) = fs::read_to_string(&file) {
            fs::write(&file, format!("\u{feff}{text}")).unwrap();
        }
    }
    let done = run(&prompt);
    assert!(done.status.success(), "{}", stderr(&done));
}

#[test]
fn a_port_that_is_mapped_is_what_clients_are_told() {
    let user = User::new();
    let (_coord, rest, grpc) = crate::parts::coordinator(&user);
    let fixed = "agent --engine synthetic --rate 0 --agent-port 0 --public-port 31000 --public-quic-port 31001";
    let mut command = user.titan(fixed.split(' '));
    command.env("COORDINATOR_ENDPOINT", &grpc).env("PUBLIC_HOST", "gpu.example");
    let (mut agent, _) = Process::spawn(command, user.dir.path());
    agent.logged("registered");
    let route = r#"{"client_id":"c","model":"synthetic","prompt":"x"}"#;
    let asked = || async {
        let answer = crate::support::http().post(format!("{rest}/api/v1/inference/request")).body(route).send().await;
        answer.unwrap().json::<Value>().await.unwrap()
    };
    let told = tokio::runtime::Runtime::new().unwrap().block_on(asked());
    assert_eq!(told["agent_endpoint"], "gpu.example:31000", "{told}");
    assert_eq!(told["quic_endpoint"], "gpu.example:31001", "{told}");
}

#[test]
fn who_asks_the_wrong_port_is_told_the_right_one() {
    let user = User::new();
    let (_coord, rest, grpc) = crate::parts::coordinator(&user);
    let refused = user.output(["status", "--coordinator", &format!("http://{grpc}")]);
    let http_port = rest.rsplit(':').next().unwrap();
    for part in ["gRPC port", http_port, "COORDINATOR_HTTP_PORT"] {
        assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
    }
    let mut command = user.titan("agent --engine synthetic --rate 0 --agent-port 0".split(' '));
    command.env("COORDINATOR_ENDPOINT", rest.trim_start_matches("http://"));
    let (mut agent, _) = Process::spawn(command, user.dir.path());
    let said = agent.logged("REST port").to_string();
    assert!(said.contains(grpc.rsplit(':').next().unwrap()), "{said}");
}

#[test]
fn an_agent_for_others_does_not_send_them_to_localhost() {
    let user = User::new();
    assert!(user.output(["certs", "init"]).status.success());
    let fixed = "agent --engine synthetic --rate 0 --agent-port 0 --coordinator 192.0.2.1:50051";
    let refused = user.output(fixed.split(' '));
    assert_eq!(refused.status.code(), Some(1));
    for part in ["192.0.2.1:50051", "localhost", "--public-host", "--bind"] {
        assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
    }
    let mut command = user.titan(fixed.split(' '));
    command.env("PUBLIC_HOST", "localhost");
    let (mut agent, _) = Process::spawn(command, user.dir.path());
    agent.logged("reach nothing there");
}

#[test]
fn help_says_what_an_engine_needs() {
    let user = User::new();
    let help = stdout(&user.output(["agent", "--help"]));
    assert!(help.contains("`synthetic` needs --rate"), "{help}");
}
