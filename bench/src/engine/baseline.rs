//! mistral.rs alone, as a program would use it that has no agent. The only file here that names its types.

use std::path::Path;

use anyhow::Context as _;
use mistralrs::{GgufModelBuilder, Model, RequestBuilder, Response, SamplingParams, TextMessageRole};
use titan_proto::v1::Message;

use super::{Stopwatch, Tokens};

/// One engine with one sequence.
pub(super) struct MistralAlone {
    model: Model,
}

impl MistralAlone {
    /// Loads a GGUF file: one sequence, on the CPU. The prefix cache, where it is wanted, keeps every answer for as long as this lives.
    pub(super) async fn load(file: &Path, prefix_cache: bool) -> anyhow::Result<Self> {
        let folder = file.parent().context("the model has no directory")?.display().to_string();
        let name = file.file_name().context("the model has no file name")?.to_string_lossy().into_owned();
        let runtime = tokio::runtime::Handle::current();
        // The builder's future reads and converts weights without ever yielding.
        let built = tokio::task::spawn_blocking(move || {
            let mut builder = GgufModelBuilder::new(folder, vec![name]).with_max_num_seqs(1).with_force_cpu();
            if !prefix_cache {
                builder = builder.with_prefix_cache_n(None);
            }
            runtime.block_on(builder.build())
        });
        Ok(Self { model: built.await?? })
    }

    /// Generates greedily.
    pub(super) async fn generate(
        &self,
        messages: &[Message],
        tokens: u32,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<Tokens> {
        let sampling = SamplingParams {
            temperature: Some(0.0),
            max_len: Some(usize::try_from(tokens)?),
            ..SamplingParams::neutral()
        };
        let request = messages.iter().fold(RequestBuilder::new(), |request, message| {
            let role = match message.role.as_str() {
                "system" => TextMessageRole::System,
                "assistant" => TextMessageRole::Assistant,
                _ => TextMessageRole::User,
            };
            request.add_message(role, &message.content)
        });
        let request = request.set_sampling(sampling);
        let mut stream = self.model.stream_chat_request(request).await?;
        while let Some(response) = stream.next().await {
            let chunk = match response {
                Response::Chunk(chunk) => chunk,
                Response::ModelError(error, _) => anyhow::bail!("mistral.rs: {error}"),
                Response::InternalError(error) | Response::ValidationError(error) => {
                    anyhow::bail!("mistral.rs: {error}")
                }
                _ => anyhow::bail!("mistral.rs answered with something other than a chunk of text"),
            };
            let Some(choice) = chunk.choices.first() else { continue };
            watch.text(choice.delta.content.as_deref().unwrap_or_default());
            if choice.finish_reason.is_some() {
                let usage = chunk.usage.context("mistral.rs counted no tokens")?;
                return Ok(Tokens {
                    prompt: u32::try_from(usage.prompt_tokens)?,
                    cached: None,
                    completion: u32::try_from(usage.completion_tokens)?,
                });
            }
        }
        anyhow::bail!("mistral.rs' engine broke down")
    }
}
