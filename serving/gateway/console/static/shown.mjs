// Numbers as they are shown, and pieces that several pages share. `metric` is what the number is called on /metrics.
import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);
export const RUNGS = [[0, "off"], [1, "short chain"], [2, "chain"], [3, "tree"]];
export const rungName = (rung) => RUNGS[rung]?.[1] ?? `rung ${rung}`;
export const round = (value, digits = 1) => value === null || value === undefined ? "–" : Number(value).toFixed(digits);
export const percent = (value, digits = 1) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}%`;
export const sum = (values) => values.reduce((total, value) => total + value, 0);
export const clock = (at_ms) => new Date(at_ms).toLocaleTimeString("en-GB");

export const Num = ({ value, metric, digits = 1, unit = "" }) =>
  html`<span title=${metric} data-metric=${metric} data-value=${value ?? ""}>${typeof value === "number" ? round(value, digits) : "–"}${typeof value === "number" && unit ? html` <span class="soft">${unit}</span>` : ""}</span>`;
export const Badge = ({ kind = "", children }) => html`<span class="badge ${kind}">${children}</span>`;
export const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;

// Users of a tier over all ranks of a replica, as [running, queued].
export function users(signals, tier) {
  const count = (field) => sum(signals.ranks.map((rank) => rank[field][tier] ?? 0));
  return [count("running"), count("queued")];
}
export const all = (signals, field) => sum(signals.ranks.map((rank) => sum(Object.values(rank[field]))));
