//! Compiles the .proto files with protox, so that no protoc has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 3] =
    ["titancompute/v1/coordinator.proto", "titancompute/v1/agent.proto", "titan/wire/v1/wire.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["."])?;
    // Kept for gRPC reflection.
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".titan.wire.v1.Entry")
        // Their `Debug` shows no prompt: see src/private.rs.
        .skip_debug([
            ".titancompute.v1.InferenceRequest",
            ".titancompute.v1.OutcomeRequest",
            ".titancompute.v1.Prefill",
            ".titancompute.v1.StreamRequest",
            ".titancompute.v1.Continuation",
            ".titancompute.v1.Message",
            ".titancompute.v1.ContentPart",
            ".titancompute.v1.ToolCall",
            ".titancompute.v1.Tool",
            ".titancompute.v1.StreamResponse",
            ".titancompute.v1.ToolCallDelta",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
