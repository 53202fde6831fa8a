// Tiers: what is promised, what users get, and how much of the error budget is left.
import { useEffect, useRef } from "preact/hooks";
import { Badge, Num, html, percent, sum, users } from "./shown.mjs";

const heard = (state) => state.replicas.filter((replica) => replica.signals);

// The slowest replica's: users of a tier are promised the same on each.
function attained(state, tier) {
  const found = heard(state).flatMap((replica) => {
    const spread = replica.signals.tok_s_per_user[tier];
    return spread ? [{ ...spread, number: replica.id.split("-").pop() }] : [];
  });
  return found.length ? found.reduce((worst, each) => each.p5 < worst.p5 ? each : worst) : null;
}

function met(state, tier) {
  const pairs = heard(state).map((replica) => replica.signals.met[tier] ?? [0, 0]);
  return [sum(pairs.map((pair) => pair[0])), sum(pairs.map((pair) => pair[1]))];
}

function Budget({ kept, judged, objective }) {
  if (!judged) return html`<span class="soft">none has ended yet</span>`;
  const left = 1 - (1 - kept / judged) / (1 - objective);
  const shown = Math.max(0, Math.min(1, left));
  return html`<div class="budget ${left < 0.25 ? "low" : ""}" role="meter" aria-label="error budget left" aria-valuemin="0" aria-valuemax="1" aria-valuenow=${shown}><div style="width:${100 * shown}%"></div></div>
    <span class="soft">${left < 0 ? `overspent ${(1 - left).toFixed(1)} times` : `${percent(left, 0)} left of ${percent(1 - objective, 0)}`}</span>`;
}

export function Promises({ state, past }) {
  const rows = state.tiers.map((tier) => {
    const spread = attained(state, tier.id), [kept, judged] = met(state, tier.id);
    const counts = heard(state).map((replica) => users(replica.signals, tier.id));
    const of = (quantile) => spread && `sparktier_user_tok_s{replica="${spread.number}",tier="${tier.id}",quantile="${quantile}"}`;
    const behind = spread && tier.promise_tok_s && spread.p5 < tier.promise_tok_s;
    return html`<tr data-tier=${tier.name}>
      <td><strong>${tier.name}</strong> ${tier.default ? html`<span class="soft">default</span>` : ""}</td>
      <td class="num">${tier.promise_tok_s ? html`<${Num} value=${tier.promise_tok_s} digits=${0} unit="tok/s" />` : html`<span class="soft">best effort</span>`}</td>
      <td class="num"><${Num} value=${spread?.p5} metric=${of("0.05")} /></td>
      <td class="num"><${Num} value=${spread?.p50} metric=${of("0.5")} /></td>
      <td>${!tier.promise_tok_s || !spread ? html`<${Badge}>${spread ? "no promise" : "no users"}<//>` : behind ? html`<${Badge} kind="bad">behind<//>` : html`<${Badge} kind="good">kept<//>`}</td>
      <td class="num"><${Num} value=${sum(counts.map((pair) => pair[0]))} digits=${0} metric=${`sparktier_running_requests{tier="${tier.id}"}`} />${" / "}<${Num} value=${sum(counts.map((pair) => pair[1]))} digits=${0} metric=${`sparktier_queued_requests{tier="${tier.id}"}`} /></td>
      <td class="num" title="sparktier_met_requests_total / sparktier_judged_requests_total">${judged ? percent(kept / judged) : "–"} <span class="soft">${judged ? `of ${judged}` : ""}</span></td>
      <td>${tier.promise_tok_s ? html`<${Budget} kept=${kept} judged=${judged} objective=${state.objective_frac} />` : html`<span class="soft">–</span>`}</td>
    </tr>`;
  });
  return html`<h2>Promises</h2>
    <p class="lead">Speed after the first token, of users who run or ended within 30 s; of several replicas the slowest. Met counts requests with tokens enough to tell since each replica's start. The lines begin when this page is opened.</p>
    <section class="panel"><div class="scroll" tabindex="0" role="region" aria-label="Tiers"><table>
      <thead><tr><th scope="col">Tier</th><th scope="col" class="num">Promised</th><th scope="col" class="num">p5 tok/s</th><th scope="col" class="num">p50 tok/s</th><th scope="col">Now</th><th scope="col" class="num">Run / wait</th><th scope="col" class="num">Met</th><th scope="col">Error budget</th></tr></thead>
      <tbody>${rows}</tbody></table></div></section>
    <div class="cards">${state.tiers.map((tier) => html`<section class="panel"><h3>${tier.name}: tok/s of users</h3>
      <${Line} past=${past} tier=${tier} key=${tier.id} /></section>`)}</div>`;
}

function Line({ past, tier }) {
  const box = useRef(null), chart = useRef(null);
  const points = past.map((point) => point.tiers[tier.id]);
  const data = [past.map((point) => point.at_s), points.map((spread) => spread?.p50 ?? null), points.map((spread) => spread?.p5 ?? null),
    past.map(() => tier.promise_tok_s ?? null)];
  useEffect(() => {
    const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: of("--soft"), grid: { stroke: of("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    chart.current = new window.uPlot({
      width: box.current.clientWidth, height: 130, legend: { show: false }, cursor: { show: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, tier.promise_tok_s ?? 0, 1) * 1.15] } },
      series: [{}, { stroke: of("--accent"), width: 2 }, { stroke: of("--accent"), width: 1, dash: [2, 3] }, { stroke: of("--warn"), width: 1, dash: [6, 4] }],
      axes: [{ ...axis, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB")), space: 80 }, { ...axis, size: 38 }],
    }, data, box.current);
    const sized = new ResizeObserver(() => box.current && chart.current.setSize({ width: box.current.clientWidth, height: 130 }));
    sized.observe(box.current);
    return () => { sized.disconnect(); chart.current.destroy(); };
  }, [tier.id, document.documentElement.dataset.theme]);
  useEffect(() => { chart.current?.setData(data); }, [past]);
  const last = points.findLast((spread) => spread);
  return html`<div class="chart" ref=${box} role="img" aria-label=${`${tier.name}: ${last ? `p50 ${last.p50.toFixed(1)}, p5 ${last.p5.toFixed(1)} tok/s now` : "no users yet"}${tier.promise_tok_s ? `, promised ${tier.promise_tok_s}` : ""}`}></div>
    <p class="soft" style="margin:.2rem 0 0">solid p50, dotted p5${tier.promise_tok_s ? ", dashed the promise" : ""}</p>`;
}
