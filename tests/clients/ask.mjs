// npm `ollama`, unchanged, asks a node that has no model of its own for everything the mesh has: `ask.mjs MESH.json`,
// the node at `OLLAMA_HOST`, the package in the working folder.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const { Ollama } = createRequire(`${process.cwd()}/`)("ollama");

// The engine's model.
const GUIDE = "omx-guide";
const ABSENT = "no-such-model";
// More than the engine has slots, so that all of them are busy.
const AT_ONCE = 8;
// For one answer; every wait here ends.
const PATIENCE_MS = 60_000;

const { faq, fake } = JSON.parse(await readFile(process.argv[2], "utf8"));
const patient = (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(PATIENCE_MS) });
const client = new Ollama({ host: process.env.OLLAMA_HOST, fetch: patient });
// The stand-in itself: what a client finds there it must find behind the mesh too.
const beside = new Ollama({ host: fake.url, fetch: patient });
const options = { temperature: 0 };
const asked = (question) => [{ role: "user", content: question }];

async function chat(model, question, stream) {
  const reply = await client.chat({ model, messages: asked(question), stream, options });
  if (!stream) {
    assert.equal(reply.done_reason, "stop");
    return reply.message.content;
  }
  const parts = [];
  for await (const part of reply) parts.push(part);
  assert.deepEqual(parts.filter((part) => part.done).length, 1);
  assert.ok(parts.length > 1 && parts.at(-1).done);
  return parts.map((part) => part.message.content).join("");
}

async function generate(model, prompt, stream) {
  const reply = await client.generate({ model, prompt, stream, options });
  if (!stream) return reply.response;
  const said = [];
  for await (const part of reply) said.push(part.response);
  return said.join("");
}

async function check({ question, answer }, stream) {
  assert.equal(await chat(GUIDE, question, stream), answer, `${question}, stream: ${stream}`);
}

async function theEngine({ question, answer }) {
  assert.equal((await client.show({ model: GUIDE })).details.family, "llama");
  assert.equal((await client.embed({ model: GUIDE, input: ["one", "two"] })).embeddings.length, 2);
  for (const stream of [false, true]) assert.equal(await generate(GUIDE, question, stream), answer);
}

async function theStandIn() {
  for (const stream of [false, true]) {
    assert.equal(await chat(fake.completion, "Count.", stream), fake.answer);
    assert.equal(await generate(fake.completion, "Count.", stream), fake.answer);
  }
  for (const model of [fake.completion, fake.tools, fake.embedding]) {
    assert.deepEqual(await client.show({ model }), await beside.show({ model }));
  }
  const texts = { model: fake.embedding, input: ["one", "two", "one"] };
  assert.deepEqual((await client.embed(texts)).embeddings, (await beside.embed(texts)).embeddings);
  const properties = { city: { type: "string" }, days: { type: "integer" } };
  const parameters = { type: "object", properties, required: ["city", "days"] };
  const tools = [{ type: "function", function: { name: "weather", description: "Tells the weather", parameters } }];
  const messages = asked("Will it rain?");
  const { message } = await client.chat({ model: fake.tools, messages, tools });
  const calls = message.tool_calls.map((call) => [call.function.name, call.function.arguments]);
  assert.deepEqual(calls, [["weather", { city: "t0", days: 0 }]]);
  messages.push(message, { role: "tool", tool_name: "weather", content: "It will." });
  assert.equal((await client.chat({ model: fake.tools, messages, tools })).message.content, fake.answer);
}

// Both were asked, so what runs is on two nodes, neither of them the one that is asked.
async function theMesh() {
  const all = [`${GUIDE}:latest`, fake.completion, fake.tools, fake.embedding].sort();
  const names = ({ models }) => models.map((model) => model.name).sort();
  assert.deepEqual(names(await client.list()), all);
  assert.deepEqual(names(await client.ps()), all);
  for (const stream of [false, true]) {
    await assert.rejects(
      client.chat({ model: ABSENT, messages: asked("Hi"), stream }),
      (error) => error.status_code === 404 && /not found/.test(error.message),
    );
  }
}

for (const entry of faq) {
  for (const stream of [false, true]) await check(entry, stream);
}
const left = faq.values();
const worker = async () => {
  for (const entry of left) {
    for (const stream of [true, false]) await check(entry, stream);
  }
};
await Promise.all(Array.from({ length: AT_ONCE }, worker));
await theEngine(faq[0]);
await theStandIn();
await theMesh();
console.log(`npm ollama: ${faq.length} questions, each answered exactly 4 times`);
