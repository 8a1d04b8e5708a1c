//! Fetches the default model into the user's cache and prints where it lies: `cargo run -p titan-agent --example fetch_model`.

use titan_agent::engine::fetch::{FetchError, FetchProgress, default_model};

fn main() -> Result<(), FetchError> {
    let path = default_model(&|progress| match progress {
        FetchProgress::Waiting => eprintln!("another process is fetching it"),
        FetchProgress::Downloading { bytes, total } => eprintln!("{} of {} MB", bytes / 1_000_000, total / 1_000_000),
        FetchProgress::Unpacking => eprintln!("unpacking"),
    })?;
    println!("{}", path.display());
    Ok(())
}
