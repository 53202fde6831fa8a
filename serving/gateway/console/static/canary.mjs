// The losslessness canary of each replica: what it scored, how strong the evidence is, and the latch.
import { Badge, Fact, Num, html, percent } from "./shown.mjs";

const KINDS = { watching: "good", alarmed: "bad", off: "" };
const ACCEPTANCE = { usual: ["", "usual"], high: ["warn", "absurdly high"], low: ["warn", "absurdly low"] };

export function Canary({ state, ask }) {
  return html`<h2>Canary</h2>
    <p class="lead">Emitted tokens are scored by a plain prefill of the same replica. A far token is one that the target would not choose. At full evidence the replica latches its speculation off.</p>
    <div class="cards">${state.replicas.map((replica) => html`<${One} replica=${replica} ask=${ask} key=${replica.id} />`)}</div>`;
}

function One({ replica, ask }) {
  const { signals } = replica, number = replica.id.split("-").pop();
  if (!signals) return html`<section class="panel"><div class="head"><h3>${replica.id}</h3></div><p class="banner bad">${replica.error}</p></section>`;
  const { canary } = signals, [kind, words] = ACCEPTANCE[canary.acceptance];
  const of = (name) => `sparktier_canary_${name}{replica="${number}"}`;
  return html`<section class="panel" data-replica=${replica.id}>
    <div class="head"><h3>${replica.id}</h3><${Badge} kind=${KINDS[canary.state]}>${canary.state}<//>
      ${signals.latched && html`<${Badge} kind="bad">latched off<//>`}
      <div class="right">${signals.latched && html`<button type="button" onClick=${() => ask({ action: "unlatch", replica: replica.id, title: `Let ${replica.id} draft again`, text: signals.latch_cause, confirm: "Let it draft" })}>Unlatch</button>`}</div></div>
    ${signals.latched && html`<p class="banner bad">${signals.latch_cause}</p>`}
    ${canary.state === "off" ? html`<p class="empty">Nothing is scored here: no ladder, or speculation.canary is off.</p>` : html`
      <div style="margin-top:.8rem"><span class="soft">Evidence for wrong tokens</span>
        <div class="budget low" role="meter" aria-label="evidence" aria-valuemin="0" aria-valuemax="1" aria-valuenow=${canary.level_frac} title=${of("level_frac")} style="height:10px"><div style="width:${100 * canary.level_frac}%"></div></div>
        <span class="soft">${percent(canary.level_frac, 0)} of what alarms</span></div>
      <dl class="facts">
        <${Fact} name="Scored tokens"><${Num} value=${canary.scored_tokens} digits=${0} metric=${of("scored_tokens_total")} /><//>
        <${Fact} name="Far tokens"><${Num} value=${canary.far_tokens} digits=${0} metric=${of("far_tokens_total")} /><//>
        <${Fact} name="Alarms"><${Num} value=${canary.alarms} digits=${0} metric=${of("alarmed")} /><//>
        <${Fact} name="Scoring steps"><span title=${of("score_steps_total")}>${canary.score_steps} <span class="soft">${canary.steps ? percent(canary.score_steps / canary.steps, 2) : ""}</span></span><//>
        <${Fact} name="Acceptance"><${Badge} kind=${kind}>${words}<//><//>
      </dl>`}
  </section>`;
}
