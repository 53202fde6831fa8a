// The controller's log, the newest first: each line opens to all that it was decided from.
import { useEffect, useRef, useState } from "preact/hooks";
import { load } from "./api.mjs";
import { Badge, clock, html } from "./shown.mjs";

const POLL_MS = 2000, MOST = 1000;

export function Decisions({ query, change, paused }) {
  const [lines, setLines] = useState([]);
  const [error, setError] = useState(null);
  const after = useRef(0);
  useEffect(() => {
    if (paused && lines.length) return;
    let over = false;
    const poll = async () => {
      const found = await load(`decisions?after=${after.current}`);
      if (over) return;
      setError(found.error ?? found.value.error);
      const fresh = found.value?.lines ?? [];
      if (!fresh.length) return;
      const began = fresh[0].seq <= after.current;
      after.current = fresh.at(-1).seq;
      setLines((before) => [...(began ? [] : before), ...fresh].slice(-MOST));
    };
    poll();
    const timer = setInterval(poll, POLL_MS);
    return () => { over = true; clearInterval(timer); };
  }, [paused]);
  const replica = query.get("replica") ?? "", kind = query.get("kind") ?? "", words = (query.get("words") ?? "").toLowerCase(), open = query.get("open");
  const of = (line) => line.kind === "decision" ? line.decision.replica_id : line.name ?? "";
  const names = [...new Set(lines.map(of).filter(Boolean))].sort();
  const shown = lines.filter((line) => (!replica || of(line) === replica) && (!kind || line.kind === kind) && (!words || text(line).toLowerCase().includes(words))).reverse();
  return html`<h2>Decisions</h2>
    <div class="filters" role="search">
      <label>Replica <select value=${replica} onChange=${(event) => change({ replica: event.target.value })}><option value="">all</option>${[...new Set([...names, ...(replica ? [replica] : [])])].map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      <label>Kind <select value=${kind} onChange=${(event) => change({ kind: event.target.value })}><option value="">all</option><option value="decision">decisions</option><option value="state">states</option><option value="start">starts</option></select></label>
      <label>Reason has <input type="search" value=${query.get("words") ?? ""} onInput=${(event) => change({ words: event.target.value })} /></label>
      <button type="button" aria-pressed=${paused} onClick=${() => change({ paused: paused ? "" : "1" })}>${paused ? "Go on" : "Pause"}</button>
      <span class="soft">${shown.length} of ${lines.length}</span>
    </div>
    ${error && html`<p class="banner" role="status">${error}</p>`}
    <section class="panel" id="decisions">${shown.map((line) => html`<${Line} line=${line} key=${line.seq} open=${open === String(line.seq)} toggled=${(is) => change({ open: is ? String(line.seq) : "" })} />`)}
      ${!shown.length && html`<p class="empty">${lines.length ? "No line matches these filters." : error ? "No decision is known." : "Nothing was decided yet."}</p>`}</section>`;
}

function Line({ line, open, toggled }) {
  const [is, setIs] = useState(open);
  const name = line.kind === "decision" ? line.decision.replica_id : line.name ?? "controller";
  const at_ms = line.at_ms ?? line.decision?.at_ms;
  const flipped = (event) => { if (event.target.open !== is) { setIs(event.target.open); toggled(event.target.open); } };
  return html`<details class="decision" open=${is} onToggle=${flipped} data-seq=${line.seq}>
    <summary><span class="soft">${at_ms ? clock(at_ms) : ""}</span><span>${name}</span><span>${changes(line)}</span><span class="soft">${reason(line)}</span></summary>
    ${is && html`<pre tabindex="0" aria-label="All inputs">${JSON.stringify(line, null, 1)}</pre>`}
  </details>`;
}

const reason = (line) => line.kind === "decision" ? line.decision.reason : line.kind === "state" ? line.found : `epoch ${line.epoch}, ${line.step_times ? "with" : "without"} step times`;
const text = (line) => `${line.name ?? ""} ${line.state ?? ""} ${line.decision?.replica_id ?? ""} ${reason(line)}`;

function changes(line) {
  if (line.kind === "start") return html`<${Badge}>begins<//>`;
  if (line.kind === "state") return html`<${Badge} kind=${["steered", "leading"].includes(line.state) ? "good" : line.state === "sent" ? "" : "warn"}>${line.state}<//>`;
  const { from, to } = line.decision, found = [];
  for (const field of ["state", "rung", "rows"]) if (from[field] !== to[field]) found.push(`${field} ${from[field]} → ${to[field]}`);
  if (JSON.stringify(from.caps) !== JSON.stringify(to.caps)) found.push(`users ${Object.entries(to.caps).map(([tier, cap]) => `${tier}: ${cap ?? "any"}`).join(", ")}`);
  return found.join("; ") || "as before";
}
