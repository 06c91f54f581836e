// Asks every path of a service by the types that openapi-typescript makes of its document.
import createClient from "openapi-fetch";
import type { components, paths } from "./generated.js";

declare const process: { argv: string[]; env: Record<string, string> };

const client = createClient<paths>({ baseUrl: process.argv[2] });
const encounter: components["schemas"]["Encounter"] = JSON.parse(process.env["EXAMPLE"] ?? "");

const one = await client.POST("/predict", { body: encounter, params: { query: { explain: true, log: false } } });
if (one.data === undefined) throw new Error(JSON.stringify(one.error));
const group: "low" | "medium" | "high" | "very high" = one.data.risk_group;
const most: number = one.data.explanation?.contributions[0]?.contribution ?? NaN;
if (!group || Number.isNaN(most)) throw new Error("no explanation");

const many = await client.POST("/predict/batch", { body: [encounter, encounter] });
const scores: number[] = (many.data ?? []).map((answer) => answer.probability_score);
if (scores.length !== 2 || scores[0] !== one.data.probability_score) throw new Error(String(scores));

const wrong = await client.POST("/predict", { body: { ...encounter, time_in_hospital: 99 } });
if (wrong.response.status !== 422) throw new Error("not refused");

const health = await client.GET("/health");
const cutoffs: number[] = health.data?.risk_cutoffs ?? [];
if (!health.data?.ready || cutoffs.length !== 3) throw new Error(JSON.stringify(health));
const metrics = await client.GET("/metrics", { parseAs: "text" });
if (!metrics.data?.includes("health_predict_requests_total")) throw new Error("no metrics");
for (const path of ["/livez", "/readyz"] as const) {
  if (!(await client.GET(path, { parseAs: "text" })).response.ok) throw new Error(path);
}
console.log(JSON.stringify(one.data));
