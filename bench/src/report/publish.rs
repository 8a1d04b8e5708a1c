//! Into the repository: docs/BENCHMARKS.md, its plots and the CSV, and the figures of the README.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{csv, html::Contents, markdown, svg};

/// A document's figures stand between two of these.
const MARKER: &str = "<!-- titan-bench -->";
/// What is published together, so that the repository stays small.
const MOST_BYTES: usize = 2 * 1024 * 1024;
const README: &str = "README.md";
const PLOTS: &str = "benchmarks";

/// Writes below `root`, the repository: all or nothing, as far as it can be known before.
pub(super) fn publish(contents: &Contents, root: &Path) -> anyhow::Result<()> {
    let readme_path = root.join(README);
    let readme = fs::read_to_string(&readme_path).with_context(|| {
        format!("cannot read {}: --publish runs in the root of the repository", readme_path.display())
    })?;
    let figures = format!("{}\n\n{}", markdown::headline(contents), source(contents));
    let readme = between_markers(&readme, &figures).with_context(|| readme_path.display().to_string())?;

    let docs = root.join("docs");
    let mut files = vec![
        (docs.join("BENCHMARKS.md"), markdown::document(contents, PLOTS)),
        (docs.join(PLOTS).join("summary.csv"), csv::csv(&contents.data)),
    ];
    for figure in &contents.figures {
        let file = svg::file(figure.title, &figure.panels);
        files.push((docs.join(PLOTS).join(format!("{}.svg", figure.name)), file));
    }
    let bytes: usize = files.iter().map(|(_, text)| text.len()).sum();
    anyhow::ensure!(
        bytes < MOST_BYTES,
        "the published files would have {bytes} bytes, and {MOST_BYTES} are allowed: measure fewer conditions, or fewer at once"
    );
    fs::create_dir_all(docs.join(PLOTS)).with_context(|| format!("cannot make {}", docs.join(PLOTS).display()))?;
    for (path, text) in files.iter().chain([&(readme_path, readme)]) {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!(
        "published: {} and {} files beside it, {} KiB; {README}",
        files[0].0.display(),
        files.len() - 1,
        bytes / 1024
    );
    Ok(())
}

/// Under the README's table.
fn source(contents: &Contents) -> String {
    let settings = &contents.glance.networks;
    let place = contents.data.runs.first().map(|run| run.environment.summary()).unwrap_or_default();
    format!(
        "Medians; less is better. {settings} {place}. Plots, intervals, and where Titan loses: [docs/BENCHMARKS.md](docs/BENCHMARKS.md)."
    )
}

/// Replaces what stands between the markers of a document.
pub(super) fn replace(document: &Path, inside: &str) -> anyhow::Result<()> {
    let name = || document.display().to_string();
    let text = fs::read_to_string(document).with_context(|| format!("cannot read {}", name()))?;
    let text = between_markers(&text, inside).with_context(name)?;
    fs::write(document, text).with_context(|| format!("cannot write {}", name()))?;
    eprintln!("published: {}", name());
    Ok(())
}

fn between_markers(text: &str, inside: &str) -> anyhow::Result<String> {
    let missing = || format!("needs two lines {MARKER}, between which the figures go");
    let (before, rest) = text.split_once(MARKER).with_context(missing)?;
    let (_, after) = rest.split_once(MARKER).with_context(missing)?;
    anyhow::ensure!(!after.contains(MARKER), "has more than two of {MARKER}: it is not clear where the figures go");
    Ok(format!("{before}{MARKER}\n\n{inside}\n\n{MARKER}{after}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::report::{contents, example};

    #[test]
    fn what_is_outside_the_markers_stays() {
        let text = format!("before\n{MARKER}\nold\n{MARKER}\nafter\n");
        let replaced = between_markers(&text, "new").unwrap();
        assert_eq!(replaced, format!("before\n{MARKER}\n\nnew\n\n{MARKER}\nafter\n"));
        assert_eq!(between_markers(&replaced, "new").unwrap(), replaced);
        for wrong in ["none".to_owned(), MARKER.to_owned(), MARKER.repeat(3)] {
            assert!(between_markers(&wrong, "new").is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_document_is_named_when_its_figures_have_no_place() {
        let root = tempfile::tempdir().unwrap();
        let document = root.path().join("ENGINES.md");
        let error = format!("{:#}", replace(&document, "x").unwrap_err());
        assert!(error.contains("cannot read") && error.contains("ENGINES.md"), "{error}");
        fs::write(&document, "nothing").unwrap();
        let error = format!("{:#}", replace(&document, "x").unwrap_err());
        assert!(error.contains(MARKER) && error.contains("ENGINES.md"), "{error}");
        fs::write(&document, format!("a\n{MARKER}\n{MARKER}\nb\n")).unwrap();
        replace(&document, "x").unwrap();
        assert_eq!(fs::read_to_string(&document).unwrap(), format!("a\n{MARKER}\n\nx\n\n{MARKER}\nb\n"));
    }

    #[test]
    fn everything_is_published_or_nothing() {
        let root = tempfile::tempdir().unwrap();
        let readme = root.path().join(README);
        let contents = contents(example::data());
        assert!(publish(&contents, root.path()).is_err());
        fs::write(&readme, "no markers").unwrap();
        let error = format!("{:#}", publish(&contents, root.path()).unwrap_err());
        assert!(error.contains(MARKER) && error.contains("README.md"), "{error}");
        assert!(!root.path().join("docs").exists());

        fs::write(&readme, format!("# Top\n{MARKER}\n{MARKER}\n# End\n")).unwrap();
        publish(&contents, root.path()).unwrap();
        let readme = fs::read_to_string(&readme).unwrap();
        assert!(
            readme.starts_with("# Top\n") && readme.ends_with("# End\n") && readme.contains("| Titan QUIC "),
            "{readme}"
        );
        let document = fs::read_to_string(root.path().join("docs/BENCHMARKS.md")).unwrap();
        for line in document.lines().filter_map(|line| line.strip_prefix("![")) {
            let file = line.split_once('(').unwrap().1.trim_end_matches(')');
            assert!(root.path().join("docs").join(file).exists(), "{file}");
        }
        assert!(root.path().join("docs/benchmarks/summary.csv").exists());
    }
}
