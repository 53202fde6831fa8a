// Requests that somebody may be asking about: waiting, silent, long, and the last that failed.
import { Badge, html } from "./shown.mjs";

export function Requests({ state, query, change }) {
  const words = (query.get("words") ?? "").toLowerCase(), failed = query.get("failed") === "1";
  const rows = state.requests.filter((row) => (!failed || row.ended_ago_s !== null) && (!words || JSON.stringify(row).toLowerCase().includes(words)));
  return html`<h2>Requests in trouble</h2>
    <p class="lead">Those that wait for room for a second, have had no token for ten, or run for a minute; then the last hundred that failed, were limited, or whose client hung up. Of this gateway alone.</p>
    <div class="filters" role="search">
      <label>Has <input type="search" placeholder="id, tenant, tier" value=${query.get("words") ?? ""} onInput=${(event) => change({ words: event.target.value })} /></label>
      <button type="button" aria-pressed=${failed} onClick=${() => change({ failed: failed ? "" : "1" })}>Failed only</button>
    </div>
    <section class="panel"><div class="scroll" tabindex="0" role="region" aria-label="Requests"><table><thead><tr><th scope="col">Trouble</th><th scope="col">Request</th><th scope="col">Tenant</th><th scope="col">Tier</th><th scope="col">Replica</th><th scope="col">Phase</th><th scope="col" class="num">Age s</th><th scope="col" class="num">Ended s ago</th></tr></thead>
      <tbody>${rows.map((row) => html`<tr><td><${Badge} kind=${row.ended_ago_s === null ? "warn" : "bad"}>${row.trouble}<//></td><td>${row.request_id}</td><td>${row.tenant || "–"}</td><td>${row.tier || "–"}</td><td>${row.replica ?? "–"}</td><td>${row.phase}</td><td class="num">${row.age_s.toFixed(1)}</td><td class="num">${row.ended_ago_s === null ? "" : row.ended_ago_s.toFixed(0)}</td></tr>`)}</tbody></table></div>
      ${!rows.length && html`<p class="empty">${state.requests.length ? "None matches." : "No request is in trouble."}</p>`}</section>`;
}
