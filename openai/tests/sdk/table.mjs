// The openai package of Node, unmodified, at one address: node table.mjs BASE_URL API_KEY
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 4 });
const model = "smollm2:135m";
const messages = [{ role: "user", content: "Write a long story about a lighthouse keeper and the sea." }];
const chat = (more = {}) =>
  client.chat.completions.create({ model, messages, max_completion_tokens: 12, temperature: 0, ...more });

const cases = {
  async "chat is the same, streamed and not"() {
    const whole = await chat();
    let text = "";
    let usage;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, 12);
  },
  async "a schema is kept"() {
    const schema = { type: "object", properties: { n: { type: "integer" } }, required: ["n"], additionalProperties: false };
    const response_format = { type: "json_schema", json_schema: { name: "number", strict: true, schema } };
    const answer = await chat({ response_format, max_completion_tokens: 60 });
    assert.ok(Number.isInteger(JSON.parse(answer.choices[0].message.content).n));
  },
  async "a function is called"() {
    const parameters = { type: "object", properties: { city: { type: "string", enum: ["Bern"] } }, required: ["city"], additionalProperties: false };
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const answer = await chat({ tools, tool_choice: "required", max_completion_tokens: 80 });
    assert.equal(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments).city, "Bern");
  },
  async "responses are streamed, and taken up where they broke off"() {
    const asked = { model, input: "Write a long story about a lighthouse keeper and the sea.", max_output_tokens: 40, temperature: 0, background: true, stream: true };
    const seen = [];
    for await (const event of await client.responses.create(asked)) {
      seen.push(event);
      if (seen.length === 6) break;
    }
    const id = seen[0].response.id;
    const after = seen.at(-1).sequence_number;
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: after })) seen.push(event);
    assert.deepEqual(seen.map((event) => event.sequence_number), seen.map((_, at) => at));
    const text = seen.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");
    assert.equal((await client.responses.retrieve(id)).output_text, text);
  },
  async "each fault has its class"() {
    const plain = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
    const ask = (more) => plain.chat.completions.create({ model, messages, max_completion_tokens: 4, ...more });
    await assert.rejects(ask({ n: 2 }), OpenAI.BadRequestError);
    await assert.rejects(ask({ model: "nobody" }), (error) => [403, 404].includes(error.status));
  },
};
for (const [name, run] of Object.entries(cases)) {
  await run();
  console.log(`ok   ${name}`);
}
