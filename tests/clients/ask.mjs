// Asks a node everything in a FAQ through npm `ollama`, unchanged: `ask.mjs FAQ.json`, the node at `OLLAMA_HOST`, the
// package in the working folder.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const { Ollama } = createRequire(`${process.cwd()}/`)("ollama");

const MODEL = "omx-guide";
// More than the engine has slots, so that all of them are busy.
const AT_ONCE = 8;
// For one answer; every wait here ends.
const PATIENCE_MS = 60_000;

const patient = (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(PATIENCE_MS) });
const client = new Ollama({ host: process.env.OLLAMA_HOST, fetch: patient });
const options = { temperature: 0 };

async function chat(question, stream) {
  const messages = [{ role: "user", content: question }];
  const reply = await client.chat({ model: MODEL, messages, stream, options });
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

async function check({ question, answer }, stream) {
  assert.equal(await chat(question, stream), answer, `${question}, stream: ${stream}`);
}

async function everythingElse({ question, answer }) {
  const { models } = await client.list();
  assert.ok(models.some((model) => model.name.split(":")[0] === MODEL));
  assert.equal((await client.show({ model: MODEL })).details.family, "llama");
  assert.deepEqual((await client.ps()).models.map((model) => model.name.split(":")[0]), [MODEL]);
  assert.equal((await client.embed({ model: MODEL, input: ["one", "two"] })).embeddings.length, 2);
  assert.equal((await client.generate({ model: MODEL, prompt: question, options })).response, answer);
  const said = [];
  for await (const part of await client.generate({ model: MODEL, prompt: question, stream: true, options })) {
    said.push(part.response);
  }
  assert.equal(said.join(""), answer);
  await assert.rejects(
    client.chat({ model: "no-such-model", messages: [{ role: "user", content: "Hi" }] }),
    (error) => error.status_code === 404 && /not found/.test(error.message),
  );
}

const faq = JSON.parse(await readFile(process.argv[2], "utf8"));
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
await everythingElse(faq[0]);
console.log(`npm ollama: ${faq.length} questions, each answered exactly 4 times`);
