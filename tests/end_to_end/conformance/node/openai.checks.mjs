// What OpenAI's official client for Node is promised, against SPARKTIER_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { SPARKTIER_URL, SPARKTIER_KEY, SPARKTIER_MODEL: model } = process.env;
const settings = { baseURL: `${SPARKTIER_URL}/v1`, apiKey: SPARKTIER_KEY, maxRetries: 0, timeout: 180_000 };
const client = new OpenAI(settings);
const messages = [{ role: "user", content: "Name three rivers." }];
const moods = { type: "object", properties: { mood: { enum: ["good", "bad"] } }, required: ["mood"] };
const tools = [{ type: "function", function: { name: "scold", parameters: moods } }];
// A greedy answer of the tests' model may be white space without end, which grammars of JSON allow.
const sampled = { temperature: 1, seed: 1, max_tokens: 2000 };
const chat = (fields) => client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0, ...fields });
const completed = (fields) => client.completions.create({ model, prompt: "One two", temperature: 0, ...fields });

test("the model is listed", async () => {
  const found = [];
  for await (const each of client.models.list()) found.push(each.id);
  assert.deepEqual(found, [model]);
});

test("a stream has the text of the whole answer and its usage at the end", async () => {
  const whole = await chat({});
  let said = "", usage = null;
  for await (const event of await chat({ stream: true, stream_options: { include_usage: true } })) {
    assert.equal(usage, null);
    said += event.choices[0]?.delta.content ?? "";
    usage = event.usage ?? null;
  }
  assert.equal(said, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(usage.sparktier.tier, "standard");
});

test("the client's own helper reads a stream", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 16, temperature: 0 });
  assert.equal(await stream.finalContent(), (await chat({})).choices[0].message.content);
});

test("choices are numbered and differ", async () => {
  const { choices } = await chat({ n: 3, temperature: 1, max_tokens: 24 });
  assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
  assert.equal(new Set(choices.map((choice) => choice.message.content)).size, 3);
});

test("log probabilities are those of the tokens", async () => {
  const [choice] = (await chat({ logprobs: true, top_logprobs: 2 })).choices;
  assert.equal(choice.logprobs.content.map((entry) => entry.token).join(""), choice.message.content);
  for (const entry of choice.logprobs.content) assert.equal(entry.logprob, entry.top_logprobs[0].logprob);
});

test("a seed fixes what is sampled", async () => {
  const texts = [];
  for (const seed of [7, 7, 8])
    texts.push((await completed({ temperature: 1, max_tokens: 32, seed })).choices[0].text);
  assert.equal(texts[0], texts[1]);
  assert.notEqual(texts[0], texts[2]);
});

test("output follows a JSON schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "report", schema: moods, strict: true } };
  const answer = await chat({ response_format, ...sampled });
  assert.ok(["good", "bad"].includes(JSON.parse(answer.choices[0].message.content).mood));
});

test("a required tool is called, whole and streamed", async () => {
  const asked = { tools, tool_choice: "required", parallel_tool_calls: false, ...sampled };
  const whole = (await chat(asked)).choices[0];
  const stream = client.chat.completions.stream({ model, messages, ...asked });
  const [streamed] = (await stream.finalChatCompletion()).choices;
  for (const choice of [whole, streamed]) {
    assert.equal(choice.finish_reason, "tool_calls");
    assert.equal(choice.message.tool_calls[0].function.name, "scold");
    assert.ok(["good", "bad"].includes(JSON.parse(choice.message.tool_calls[0].function.arguments).mood));
  }
});

for (const [tier, fields, headers] of [
  ["standard", {}, {}],
  ["gold", {}, { "x-sparktier-tier": "gold" }],
  ["lone", { service_tier: "priority" }, {}],
]) {
  test(`the answer names the tier ${tier} that served it`, async () => {
    const asked = { model, messages, max_tokens: 4, ...fields };
    const { data, response } = await client.chat.completions.create(asked, { headers }).withResponse();
    assert.equal(response.headers.get("x-sparktier-tier"), tier);
    assert.equal(data.usage.sparktier.tier, tier);
  });
}

test("refusals are the client's own errors", async () => {
  const stranger = new OpenAI({ ...settings, apiKey: "sk-wrong" });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  await assert.rejects(chat({ model: "gpt-none" }), (error) => error.code === "model_not_found");
  await assert.rejects(chat({ temperature: 9 }), (error) => error.param === "temperature");
});

test("a stream that is aborted is over", async () => {
  const stream = await completed({ max_tokens: 4000, ignore_eos: true, stream: true });
  for await (const event of stream) {
    assert.ok(event.choices.length);
    stream.controller.abort();
  }
});
