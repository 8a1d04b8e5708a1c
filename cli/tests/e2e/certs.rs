//! `titan certs`.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::{User, stderr, stdout};

#[test]
fn a_ca_is_made_once_and_certificates_are_issued_from_it() {
    let user = User::new();
    let made = user.output(["certs", "init"]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(stdout(&made).contains("titan certs issue --role agent"), "{}", stdout(&made));
    let ca = std::fs::read(user.certs().ca_pem()).unwrap();
    assert!(user.output(["certs", "init"]).status.success());
    assert_eq!(std::fs::read(user.certs().ca_pem()).unwrap(), ca, "a second init keeps the CA");

    let issued = user.output("certs issue --role agent --name gpu-1 --host gpu.example --host 192.0.2.7".split(' '));
    assert!(issued.status.success(), "{}", stderr(&issued));
    for file in ["ca.pem", "agent-gpu-1.pem", "agent-gpu-1.key"] {
        assert!(stdout(&issued).contains(file), "what to copy: {}", stdout(&issued));
    }
    assert!(user.output("certs issue --role client --name laptop --days 7".split(' ')).status.success());

    let text = stdout(&user.output(["certs", "show"]));
    for part in ["agent  gpu-1", "DNS:gpu.example", "IP:192.0.2.7", "client  laptop"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json: Value = serde_json::from_str(&stdout(&user.output(["certs", "show", "--json"]))).unwrap();
    assert_eq!(json["certificates"].as_array().unwrap().len(), 2);
    assert_eq!(json["certificates"][1]["signed_by_this_ca"], true);
}

#[test]
fn private_keys_are_for_their_owner_alone() {
    let user = User::new();
    user.output(["certs", "init"]);
    user.output("certs issue --role client --name laptop".split(' '));
    for key in ["ca.key", "client-laptop.key"] {
        let mode = std::fs::metadata(user.certs().path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn renewing_a_leaf_keeps_the_ca() {
    let user = User::new();
    user.output(["certs", "init"]);
    let ca = std::fs::read(user.certs().ca_pem()).unwrap();
    let issue = || {
        user.output("certs issue --role client --name laptop".split(' '));
        user.certs().list().unwrap().remove(0).serial
    };
    assert_ne!(issue(), issue());
    assert_eq!(std::fs::read(user.certs().ca_pem()).unwrap(), ca);
}

#[test]
fn what_cannot_be_issued_is_explained() {
    let user = User::new();
    for (arguments, code, part) in [
        ("certs issue --role client --name laptop", 1, "titan certs init"),
        ("certs show", 1, "titan certs init"),
        ("certs issue --role king --name laptop", 2, "coordinator, agent and client"),
        ("certs issue --role client --name ../../etc", 1, "../../etc"),
    ] {
        let refused = user.output(arguments.split(' '));
        assert_eq!(refused.status.code(), Some(code), "{arguments}");
        assert!(stderr(&refused).contains(part), "{arguments}: {}", stderr(&refused));
    }
}
