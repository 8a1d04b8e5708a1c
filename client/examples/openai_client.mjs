// An unmodified OpenAI client against TitanCompute.
//
//     npm install openai
//     node openai_client.mjs "Why is the sky blue?"                                             the coordinator, which sends it to an agent
//     OPENAI_BASE_URL=http://127.0.0.1:8787/v1 node openai_client.mjs "Why is the sky blue?"    titan proxy: the same over QUIC
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://localhost:8080/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "any",
});
const models = await client.models.list();
const stream = await client.chat.completions.create({
  model: models.data[0].id,
  messages: [{ role: "user", content: process.argv[2] ?? "Why is the sky blue?" }],
  max_completion_tokens: 100,
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
console.log();
