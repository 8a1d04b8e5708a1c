//! Which key goes to which server.

use std::path::Path;

use anyhow::{Context as _, bail};
use titan_agent::engine::openai::{ApiKey, ServerSpec};

use super::Planned;
use crate::commands::Usage;

/// The key of servers that have no file. The variables of other programs, such as OPENAI_API_KEY, are not looked at: they hold a key for
/// somebody else, who would be told it.
pub(super) const VARIABLE: &str = "TITAN_MODEL_KEY";

/// Gives each server its key: the one in its file, or else the variable's. `files` are `--model-key` as written.
pub(super) fn give(models: &mut [Planned], files: &[String], variable: Option<String>) -> anyhow::Result<()> {
    let mut servers: Vec<&mut ServerSpec> = models
        .iter_mut()
        .filter_map(|model| match model {
            Planned::Server(spec) => Some(spec),
            _ => None,
        })
        .collect();
    for text in files {
        let pair = text.split_once('=').map(|(name, file)| (name.trim(), file.trim()));
        let Some((name, file)) = pair.filter(|(name, file)| !name.is_empty() && !file.is_empty()) else {
            // What was given is not repeated, as clap would: it may be the key itself.
            bail!(Usage("--model-key: give NAME=FILE, where FILE holds the key: qwen=/etc/titan/qwen.key".to_owned()));
        };
        let Some(server) = servers.iter_mut().find(|server| server.name == name) else {
            let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
            bail!("--model-key {name}: no model on a server has this name; there are: {}", names.join(", "));
        };
        if server.key.is_some() {
            bail!("--model-key {name} is given twice");
        }
        server.key = Some(ApiKey::from_file(Path::new(file)).with_context(|| format!("--model-key {name}"))?);
    }
    let Some(variable) = variable.filter(|key| !key.trim().is_empty()) else { return Ok(()) };
    let without: Vec<&mut ServerSpec> = servers.into_iter().filter(|server| server.key.is_none()).collect();
    let Some(origin) = without.first().map(|server| server.origin()) else { return Ok(()) };
    // One server must not be told another one's key.
    if let Some(other) = without.iter().map(|server| server.origin()).find(|other| *other != origin) {
        bail!(
            "{VARIABLE} is set and could be the key of {origin} or of {other}: give --model-key NAME=FILE for each instead"
        );
    }
    let key = ApiKey::from_text(&variable, VARIABLE)?;
    without.into_iter().for_each(|server| server.key = Some(key.clone()));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn given(models: &[&str], files: &[(&str, &str)], variable: Option<&str>) -> anyhow::Result<Vec<Option<ApiKey>>> {
        let mut models: Vec<Planned> = models.iter().map(|text| Planned::parse(text).unwrap()).collect();
        let folder = tempfile::tempdir().unwrap();
        let files = files.iter().map(|(name, key)| {
            let file = folder.path().join(name);
            std::fs::write(&file, key).unwrap();
            format!("{name}={}", file.display())
        });
        give(&mut models, &files.collect::<Vec<_>>(), variable.map(str::to_owned))?;
        let key = |model: &Planned| match model {
            Planned::Server(spec) => spec.key.clone(),
            _ => None,
        };
        Ok(models.iter().map(key).collect())
    }

    fn key(text: &str) -> Option<ApiKey> {
        Some(ApiKey::from_text(text, "test").unwrap())
    }

    #[test]
    fn a_file_comes_before_the_variable() {
        let models = ["a=http://h:1", "b=http://h:2", "c=smollm2:135m"];
        assert_eq!(given(&models, &[("a", "one\n")], Some("two")).unwrap(), [key("one"), key("two"), None]);
        assert_eq!(given(&models, &[], None).unwrap(), [None, None, None]);
        assert_eq!(given(&models, &[], Some(" ")).unwrap(), [None, None, None]);
    }

    #[test]
    fn the_variable_is_for_one_server_only() {
        assert_eq!(given(&["a=http://h:1#m", "b=http://h:1#n"], &[], Some("k")).unwrap(), [key("k"), key("k")]);
        let message = given(&["a=http://h:1", "b=http://h:2"], &[], Some("hidden")).unwrap_err().to_string();
        assert!(message.contains("http://h:2") && !message.contains("hidden"), "{message}");
    }

    #[test]
    fn a_key_on_the_command_line_is_not_repeated() {
        for text in ["sk-hidden", "a=", "=sk-hidden"] {
            let mut models = [Planned::parse("a=http://h:1").unwrap()];
            let message = give(&mut models, &[text.to_owned()], None).unwrap_err().to_string();
            assert!(message.contains("NAME=FILE") && !message.contains("hidden"), "{message}");
        }
    }

    #[test]
    fn a_key_without_its_server_and_a_bad_one_are_refused_by_name() {
        for (files, expected) in [
            (vec![("x", "k")], "there are: a"),
            (vec![("a", "k"), ("a", "k")], "given twice"),
            (vec![("a", "two words")], "--model-key a"),
        ] {
            let message = format!("{:#}", given(&["a=http://h:1"], &files, None).unwrap_err());
            assert!(message.contains(expected) && !message.contains("two words"), "{message}");
        }
    }
}
