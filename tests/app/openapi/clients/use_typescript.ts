// The types that openapi-typescript writes: compiled by tsc, then run by Node against a server.
//
//     node use_typescript.ts URL BASE64_OF_AN_IMAGE
//
// `@ts-expect-error` makes tsc fail where the line below it has no error.

import type { components, operations, paths } from "./penstock.js";

declare const process: { argv: string[] };

type Predict = paths["/predict/digits"]["post"];
type Prediction = Predict["responses"][200]["content"]["application/json"];
type Problem = Predict["responses"][422]["content"]["application/problem+json"];
type Batch = operations["batch_digits"]["responses"][200]["content"]["application/json"];
type Kinds = components["schemas"]["Prediction_kinds-1.2"];

const [url, image] = process.argv.slice(2) as [string, string];

function expect(holds: boolean, what: unknown): void {
  if (!holds) throw new Error(JSON.stringify(what));
}

async function post<Body, Answer>(path: string & keyof paths, body: Body): Promise<Answer> {
  const headers: Predict["parameters"]["header"] & Record<string, string> = {
    "Content-Type": "application/json",
    "X-Request-Id": "client-1",
  };
  const response = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
  return (await response.json()) as Answer;
}

const predict = (image: string) =>
  post<Predict["requestBody"]["content"]["application/json"], Prediction | Problem>("/predict/digits", { image });

function checkThree(answer: Prediction | Problem): void {
  if ("code" in answer) throw new Error(answer.detail);
  const label: string | undefined = answer.label;
  const digit: number | undefined = answer.class;
  const score: number | undefined = answer.score;
  expect(label === "three" && digit === 3 && score !== undefined && score > 0.5, answer);
  // @ts-expect-error: a label is text
  const wrong: number | undefined = answer.label;
  // @ts-expect-error: there is no such output
  expect(answer.lable === undefined, wrong);
}

function checkProblem(answer: Prediction | Problem): void {
  if (!("code" in answer)) throw new Error("expected a problem");
  const status: number = answer.status;
  expect(answer.code === "invalid_input" && status === 422 && answer.request_id === "client-1", answer);
}

checkThree(await predict(image));
checkProblem(await predict("AAAA"));

const batch: Batch = await post("/predict/digits/batch", { images: [image, "AAAA"] });
checkThree(batch.results[0]!);
checkProblem(batch.results[1]!);

const kinds: Kinds = await post("/predict/kinds-1.2", { image });
const scores: (number | null)[][] | undefined = kinds.scores;
const result: number[] | null = kinds.result;
const line: string | undefined = kinds.lines?.[0]?.text;
expect(scores?.[0]?.[1] === null && result?.[1] === 2 && line === "a line", kinds);
// @ts-expect-error: there is no such path
await post("/predict/digit", { image });
