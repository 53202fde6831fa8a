// What a client that is generated from the proto for @grpc/grpc-js gets, against SPARKTIER_GRPC.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Metadata, credentials, status } from "@grpc/grpc-js";
import { ChatRequest, CompleteRequest, InferenceServiceClient } from "./generated/sparktier/v1/inference.js";

const { SPARKTIER_GRPC, SPARKTIER_KEY } = process.env;
const client = new InferenceServiceClient(SPARKTIER_GRPC, credentials.createInsecure());
const shown = new Metadata();
shown.set("authorization", `Bearer ${SPARKTIER_KEY}`);
const moods = { type: "object", properties: { mood: { enum: ["good", "bad"] } }, required: ["mood"] };
const within = (s) => ({ deadline: Date.now() + s * 1000 });

const completion = (fields, sampled) =>
  CompleteRequest.fromPartial({
    prompts: [{ text: "One two three" }], sampling: { temperature: 0, maxTokens: 16, ...sampled }, ...fields,
  });
// A greedy answer of the tests' model may be white space without end, which grammars of JSON allow.
const chat = (fields, sampled) =>
  ChatRequest.fromPartial({
    messages: [{ role: "user", content: "Name three rivers." }],
    sampling: { temperature: 1, seed: 1, maxTokens: 2000, ...sampled }, ...fields,
  });
const unary = (method, asked, metadata = shown) =>
  new Promise((answer, fail) =>
    client[method](asked, metadata, within(180), (error, found) => (error ? fail(error) : answer(found))));
const pieces = async (method, asked, s = 180) => {
  const found = [];
  for await (const piece of client[method](asked, shown, within(s))) found.push(piece);
  return found;
};

after(() => client.close());

test("a stream has the text of the whole answer and its usage at the end", async () => {
  const whole = await unary("complete", completion({ tier: "gold" }));
  const told = await pieces("streamComplete", completion({ tier: "gold" }));
  assert.equal(told.flatMap((piece) => piece.deltas).map((delta) => delta.text).join(""), whole.choices[0].text);
  for (const usage of [whole.usage, told.at(-1).usage])
    assert.deepEqual([usage.tier, usage.completionTokens], ["gold", 16]);
});

test("choices are numbered and differ", async () => {
  const { choices } = await unary("complete", completion({}, { n: 3, temperature: 1, maxTokens: 24 }));
  assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
  assert.equal(new Set(choices.map((choice) => choice.text)).size, 3);
});

test("log probabilities are those of the tokens", async () => {
  const [choice] = (await unary("complete", completion({ logprobs: 2 }))).choices;
  assert.equal(choice.logprobs.map((entry) => entry.token).join(""), choice.text);
});

test("a seed fixes what is sampled", async () => {
  const texts = [];
  for (const seed of [7, 7, 8])
    texts.push((await unary("complete", completion({}, { seed, temperature: 1, maxTokens: 32 }))).choices[0].text);
  assert.equal(texts[0], texts[1]);
  assert.notEqual(texts[0], texts[2]);
});

test("output follows a JSON schema", async () => {
  const form = { type: "json_schema", json_schema: { name: "report", schema: moods } };
  const answer = await unary("chat", chat({}, { responseFormatJson: JSON.stringify(form) }));
  assert.ok(["good", "bad"].includes(JSON.parse(answer.choices[0].message.content).mood));
});

test("a required tool is called, whole and streamed", async () => {
  const tools = [{ type: "function", function: { name: "scold", parameters: moods } }];
  const asked = chat({ toolsJson: JSON.stringify(tools), toolChoiceJson: '"required"', parallelToolCalls: false });
  const [choice] = (await unary("chat", asked)).choices;
  const deltas = (await pieces("streamChat", asked)).flatMap((piece) => piece.deltas);
  const calls = deltas.flatMap((delta) => delta.message?.toolCalls ?? []);
  assert.equal(choice.message.toolCalls[0].name, "scold");
  assert.equal(calls[0].name, "scold");
  const streamed = calls.map((call) => call.arguments).join("");
  for (const told of [choice.message.toolCalls[0].arguments, streamed])
    assert.ok(["good", "bad"].includes(JSON.parse(told).mood));
});

test("refusals have the status that fits", async () => {
  await assert.rejects(unary("complete", completion({}), new Metadata()), { code: status.UNAUTHENTICATED });
  await assert.rejects(unary("complete", completion({ tier: "none" })), { code: status.INVALID_ARGUMENT });
});

test("a call that is cancelled is over", async () => {
  const call = client.streamComplete(completion({}, { maxTokens: 4000, ignoreEos: true }), shown);
  await assert.rejects(
    async () => {
      for await (const piece of call) {
        assert.ok(piece.deltas.length);
        call.cancel();
      }
    },
    { code: status.CANCELLED });
});

test("a call beyond its deadline is over", async () => {
  const asked = completion({}, { maxTokens: 8000, ignoreEos: true });
  await assert.rejects(pieces("streamComplete", asked, 2), { code: status.DEADLINE_EXCEEDED });
});
