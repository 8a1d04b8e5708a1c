//! What a request may say.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Ref, Schema, Type},
};

/// One text or several.
fn stop() -> Schema {
    let text = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    let texts = ArrayBuilder::new().items(text()).max_items(Some(16));
    OneOfBuilder::new().item(text()).item(texts).item(ObjectBuilder::new().schema_type(Type::Null)).into()
}

/// A text, or parts.
fn text() -> Schema {
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    let parts = ArrayBuilder::new().items(Ref::from_schema_name("Part")).min_items(Some(1));
    OneOfBuilder::new().item(text).item(parts).into()
}

fn nothing() -> Schema {
    ObjectBuilder::new().schema_type(Type::Null).into()
}

/// A text, or items.
fn input() -> Schema {
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    let items = ArrayBuilder::new().items(Ref::from_schema_name("Item")).min_items(Some(1));
    OneOfBuilder::new().item(text).item(items).into()
}

/// A conversation, and how the next message is made.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatRequest {
    #[schema(min_length = 1)]
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Most tokens of the answer; without it the model ends it.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    /// The same, as it was called before.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// -1 and 0 are all tokens.
    #[schema(minimum = -1, maximum = 4294967295_i64)]
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    seed: Option<i64>,
    #[schema(schema_with = stop)]
    stop: Option<Value>,
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<ResponseFormat>,
    logprobs: Option<bool>,
    /// With `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    reasoning_effort: Option<Effort>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

/// One message. Text is a string or a list of parts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Message {
    /// What the model shall be like, or what a user says.
    Said(Said),
    /// What the model said, and the functions that it called.
    Assistant(Assistant),
    /// It said nothing, and called these functions.
    AssistantCalls(AssistantCalls),
    /// What a function gave.
    Tool(ToolResult),
}

#[derive(Serialize, ToSchema)]
pub(super) struct Said {
    #[schema(inline)]
    role: Speaker,
    #[schema(schema_with = text)]
    content: Value,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum Speaker {
    System,
    Developer,
    User,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Assistant {
    #[schema(inline)]
    role: AssistantRole,
    #[schema(schema_with = text)]
    content: Value,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AssistantCalls {
    #[schema(inline)]
    role: AssistantRole,
    #[schema(schema_with = nothing)]
    content: Option<Value>,
    reasoning_content: Option<String>,
    #[schema(min_items = 1)]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum AssistantRole {
    Assistant,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ToolResult {
    #[schema(inline)]
    role: ToolRole,
    #[schema(min_length = 1, max_length = 64)]
    tool_call_id: String,
    #[schema(schema_with = text)]
    content: Value,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum ToolRole {
    Tool,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Part {
    #[schema(inline)]
    r#type: PartType,
    #[schema(min_length = 1)]
    text: String,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum PartType {
    Text,
    InputText,
    OutputText,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ToolCall {
    #[schema(min_length = 1, max_length = 64)]
    id: String,
    #[schema(inline)]
    r#type: Option<FunctionType>,
    function: CalledFunction,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum FunctionType {
    Function,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CalledFunction {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    /// A JSON object.
    arguments: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Tool {
    #[schema(inline)]
    r#type: Option<FunctionType>,
    function: Function,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Function {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// A JSON schema.
    parameters: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ToolChoice {
    Word(#[schema(inline)] ToolChoiceWord),
    Function(ChosenFunction),
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum ToolChoiceWord {
    Auto,
    None,
    Required,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ChosenFunction {
    #[schema(inline)]
    r#type: Option<FunctionType>,
    function: FunctionName,
}

#[derive(Serialize, ToSchema)]
pub(super) struct FunctionName {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
}

/// What the text has to be.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ResponseFormat {
    Plain(PlainFormat),
    Schema(SchemaFormat),
}

#[derive(Serialize, ToSchema)]
pub(super) struct PlainFormat {
    #[schema(inline)]
    r#type: PlainFormatType,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum PlainFormatType {
    Text,
    JsonObject,
}

#[derive(Serialize, ToSchema)]
pub(super) struct SchemaFormat {
    #[schema(inline)]
    r#type: SchemaFormatType,
    json_schema: NamedSchema,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum SchemaFormatType {
    JsonSchema,
}

#[derive(Serialize, ToSchema)]
pub(super) struct NamedSchema {
    name: Option<String>,
    schema: BTreeMap<String, Value>,
    strict: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

#[derive(Serialize, ToSchema)]
pub(super) struct StreamOptions {
    /// The last chunk has it.
    include_usage: Option<bool>,
    /// Padding that hides how long tokens are; on unless switched off.
    include_obfuscation: Option<bool>,
}

/// A prompt, which is one message of a user, and how the text is made.
#[derive(Serialize, ToSchema)]
pub(super) struct CompletionRequest {
    #[schema(min_length = 1)]
    model: String,
    #[schema(min_length = 1)]
    prompt: String,
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    seed: Option<i64>,
    #[schema(schema_with = stop)]
    stop: Option<Value>,
    /// So many alternatives of each token.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<i64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

/// A conversation as items, and how the next ones are made.
#[derive(Serialize, ToSchema)]
pub(super) struct ResponseRequest {
    #[schema(min_length = 1)]
    model: String,
    #[schema(schema_with = input)]
    input: Value,
    /// What the model shall be like.
    instructions: Option<String>,
    #[schema(minimum = 1)]
    max_output_tokens: Option<i64>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    tools: Option<Vec<ResponseTool>>,
    tool_choice: Option<ToolChoice>,
    parallel_tool_calls: Option<bool>,
    text: Option<TextOptions>,
    reasoning: Option<ReasoningOptions>,
    metadata: Option<BTreeMap<String, String>>,
    stream: Option<bool>,
    /// It goes on when its reader is gone, and is kept for 10 minutes after its end.
    background: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Item {
    Message(InputMessage),
    Call(InputCall),
    Output(CallOutput),
}

#[derive(Serialize, ToSchema)]
pub(super) struct InputMessage {
    #[schema(inline)]
    r#type: Option<MessageType>,
    #[schema(inline)]
    role: InputRole,
    #[schema(schema_with = text)]
    content: Value,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum MessageType {
    Message,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum InputRole {
    User,
    Assistant,
    System,
    Developer,
}

#[derive(Serialize, ToSchema)]
pub(super) struct InputCall {
    #[schema(inline)]
    r#type: CallType,
    #[schema(min_length = 1, max_length = 64)]
    call_id: String,
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    arguments: String,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum CallType {
    FunctionCall,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CallOutput {
    #[schema(inline)]
    r#type: OutputType,
    #[schema(min_length = 1, max_length = 64)]
    call_id: String,
    #[schema(schema_with = text)]
    output: Value,
}

#[derive(Serialize, ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum OutputType {
    FunctionCallOutput,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ResponseTool {
    #[schema(inline)]
    r#type: FunctionType,
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    parameters: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TextOptions {
    format: Option<TextFormat>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TextFormat {
    Plain(PlainFormat),
    Schema(TextSchema),
}

#[derive(Serialize, ToSchema)]
pub(super) struct TextSchema {
    #[schema(inline)]
    r#type: SchemaFormatType,
    name: Option<String>,
    schema: BTreeMap<String, Value>,
    strict: Option<bool>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ReasoningOptions {
    effort: Option<Effort>,
}
