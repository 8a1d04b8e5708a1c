//! `titan keys`: who may ask a coordinator, and how much.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::SystemTime,
};

use serde_json::json;
use titan_coord::keys::{ApiKey, KeyFile, Limits};
use titan_transport::tls::{CaPin, TlsMaterial};

use super::{Usage, status::table};
use crate::{
    args::keys::{KeyDirArgs, KeysCommand, LimitArgs},
    places,
};

pub(super) fn keys(command: KeysCommand) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let text = match command {
        KeysCommand::Add(args) => {
            let mut limits = Limits::default();
            change(&mut limits, &args.limits);
            let pin = pin(args.certs.as_ref())?;
            let (key, mut secret) = file(&args.dir)?.add(&args.name, limits, now)?;
            if let Some(pin) = pin {
                secret = format!("{secret}.{pin}");
            }
            match args.json {
                true => format!("{}\n", json!({"id": key.id, "name": key.name, "key": secret, "limits": key.limits})),
                false => added(&key, &secret),
            }
        }
        KeysCommand::List(args) => {
            let keys = file(&args.dir)?.read()?;
            match args.json {
                true => format!("{}\n", json!(keys.iter().map(shown).collect::<Vec<_>>())),
                false => list(&keys),
            }
        }
        KeysCommand::Revoke(args) => {
            let key = file(&args.dir)?.revoke(&args.key, now)?;
            let ttl = "tokens that it was given before stay good until they expire (--token-ttl)";
            format!("Revoked {} ({}): a coordinator that runs refuses it within a second; {ttl}.\n", key.name, key.id)
        }
        KeysCommand::Limit(args) => {
            if args.limits.is_empty() {
                anyhow::bail!(Usage("nothing to change: give a limit, such as --concurrent 4".to_owned()));
            }
            let key = file(&args.dir)?.limit(&args.key, |limits| change(limits, &args.limits))?;
            list(&[key])
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// By which CA the key's owner will know the coordinator. None where there is no CA.
fn pin(certs: Option<&PathBuf>) -> anyhow::Result<Option<CaPin>> {
    let ca = places::certs(certs)?.ca_pem();
    if !ca.exists() {
        if certs.is_some() {
            anyhow::bail!("there is no {}: `titan certs init` makes a CA", ca.display());
        }
        return Ok(None);
    }
    Ok(TlsMaterial::from_ca(&ca)?.roots.first().map(CaPin::of))
}

fn file(args: &KeyDirArgs) -> anyhow::Result<KeyFile> {
    Ok(KeyFile::in_dir(&args.key_dir.clone().map_or_else(places::keys, Ok)?))
}

fn change(limits: &mut Limits, args: &LimitArgs) {
    let numbers = [
        (&mut limits.requests_per_second, args.requests_per_second),
        (&mut limits.tokens_per_minute, args.tokens_per_minute),
        (&mut limits.concurrent, args.concurrent),
    ];
    for (limit, given) in numbers {
        if let Some(given) = given {
            *limit = given.number();
        }
    }
    if let Some(models) = &args.models {
        limits.models = if models.iter().any(|model| model == "all") { Vec::new() } else { models.clone() };
    }
    if let Some(priority) = args.priority {
        limits.priority = priority;
    }
}

impl LimitArgs {
    fn is_empty(&self) -> bool {
        let Self { requests_per_second, tokens_per_minute, concurrent, models, priority } = self;
        let numbers = requests_per_second.is_none() && tokens_per_minute.is_none() && concurrent.is_none();
        numbers && models.is_none() && priority.is_none()
    }
}

fn added(key: &ApiKey, secret: &str) -> String {
    format!(
        "{secret}\n\nThis is the key of {}. It is shown this once: what is stored is its hash.\n  \
         TITAN_API_KEY={secret} titan run --coordinator URL \"Hello\"\n  \
         OPENAI_API_KEY={secret} OPENAI_BASE_URL=URL/v1 python app.py\n",
        key.name
    )
}

fn shown(key: &ApiKey) -> serde_json::Value {
    json!({"id": key.id, "name": key.name, "created": key.created, "revoked": key.revoked, "limits": key.limits})
}

fn list(keys: &[ApiKey]) -> String {
    if keys.is_empty() {
        return "There are no API keys: `titan keys add NAME` makes one.\n".to_owned();
    }
    let head = ["NAME", "ID", "STATE", "REQUESTS/S", "TOKENS/MIN", "CONCURRENT", "PRIORITY", "MODELS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        let Limits { requests_per_second, tokens_per_minute, concurrent, models, priority } = &key.limits;
        let number = |limit: &Option<u32>| limit.map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![
            key.name.clone(),
            key.id.clone(),
            if key.revoked.is_some() { "revoked" } else { "good" }.to_owned(),
            number(requests_per_second),
            number(tokens_per_minute),
            number(concurrent),
            priority.to_string(),
            if models.is_empty() { "all".to_owned() } else { models.join(",") },
        ]
    }));
    table(&rows)
}
