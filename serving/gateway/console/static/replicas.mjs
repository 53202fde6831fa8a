// Each replica: load, depth, what drafts yield, predicted against real, and what an operator may order.
import { Badge, Fact, Num, RUNGS, all, html, percent, rungName } from "./shown.mjs";

const KINDS = { steered: "good", sent: "", off: "", unreachable: "bad", doubtful: "warn", refused: "warn", fenced: "warn", differs: "warn", latched: "bad", expired: "warn" };

export function Replicas({ state, ask, query, change }) {
  const tiers = Object.fromEntries(state.tiers.map((tier) => [tier.id, tier.name]));
  const only = query.get("replica");
  const shown = state.replicas.filter((replica) => !only || replica.id === only);
  return html`<h2>Replicas</h2>
    ${only && html`<p class="lead">Only ${only}. <a href="?page=replicas" onClick=${(event) => { event.preventDefault(); change({ replica: "" }); }}>Show all</a></p>`}
    <div class="cards" style="grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr))">
      ${shown.map((replica) => html`<${Replica} replica=${replica} tiers=${tiers} controller=${state.controller} ask=${ask} change=${change} key=${replica.id} />`)}</div>
    ${!shown.length && html`<p class="empty">The gateway knows of no replica${only ? ` ${only}` : ""}.</p>`}`;
}

function Replica({ replica, tiers, controller, ask, change }) {
  const { signals } = replica, number = replica.id.split("-").pop(), order = controller.orders?.[replica.id];
  const steered = controller.states?.[replica.id] ?? controller.replicas?.[replica.id];
  const may = controller.enabled && !controller.error;
  const why = may ? undefined : "needs a controller that answers";
  return html`<section class="panel" data-replica=${replica.id} aria-labelledby=${replica.id}>
    <div class="head"><h3 id=${replica.id}>${replica.id}</h3>
      <${Badge} kind=${replica.life === "serving" ? "good" : replica.life === "down" ? "bad" : "warn"}>${replica.life}<//>
      ${steered && html`<${Badge} kind=${KINDS[steered] ?? ""}>${steered}<//>`}
      ${signals?.latched && html`<${Badge} kind="bad">latched off<//>`}
      ${order && html`<${Badge} kind="warn">${order.draining ? "draining" : ""}${order.draining && order.held_rung !== null ? ", " : ""}${order.held_rung !== null ? `held on rung ${order.held_rung}` : ""} by ${order.actor}<//>`}
      <div class="right">
        <button type="button" disabled=${!may} title=${why} onClick=${() => ask({ action: "drain", replica: replica.id, title: `Drain ${replica.id}`, text: "It finishes what it has and takes nothing new, until it is resumed.", confirm: "Drain" })}>Drain</button>
        <button type="button" disabled=${!may} title=${why} onClick=${() => ask({ action: "hold", replica: replica.id, title: `Hold the rung of ${replica.id}`, text: "The policy goes on with caps and rows, and leaves the rung alone until it is resumed.", rungs: RUNGS, confirm: "Hold" })}>Hold rung</button>
        <button type="button" disabled=${!may || !order} title=${why} onClick=${() => ask({ action: "resume", replica: replica.id, title: `Resume ${replica.id}`, text: "Ends what operators ordered of it; the policy decides again.", confirm: "Resume" })}>Resume</button>
        ${signals?.latched
          ? html`<button type="button" onClick=${() => ask({ action: "unlatch", replica: replica.id, title: `Let ${replica.id} draft again`, text: signals.latch_cause, confirm: "Let it draft" })}>Unlatch</button>`
          : html`<button type="button" class="danger" disabled=${!signals} onClick=${() => ask({ action: "latch", replica: replica.id, title: `Latch ${replica.id} off`, text: "It drafts nothing from the next step on, whatever plans say. Answers stay the same and are slower.", confirm: "Latch off" })}>Latch off</button>`}
      </div></div>
    ${replica.error && html`<p class="banner bad">${replica.error}</p>`}
    ${signals?.latched && html`<p class="banner bad">Latched off: ${signals.latch_cause}</p>`}
    ${signals && html`<${Facts} signals=${signals} number=${number} inFlight=${replica.in_flight} />
      <${Tiers} signals=${signals} tiers=${tiers} number=${number} />`}
    <p style="margin:.6rem 0 0"><a href="?page=decisions&replica=${replica.id}" onClick=${(event) => { event.preventDefault(); change({ page: "decisions", replica: replica.id }, { push: true }); }}>Decisions on it</a></p>
  </section>`;
}

function Facts({ signals, number, inFlight }) {
  const step_ms = signals.step_ms[signals.rung], drift = signals.drift_frac;
  return html`<dl class="facts">
    <${Fact} name="Rung"><span title='sparktier_rung{replica="${number}"}'>${signals.rung} ${rungName(signals.rung)}</span>${signals.expired ? html` <${Badge} kind="warn">plan expired<//>` : ""}<//>
    <${Fact} name="Rows of a step"><span title='sparktier_plan_rows{replica="${number}"}'>${signals.rows || "no bound"}</span><//>
    <${Fact} name="Running / waiting"><${Num} value=${all(signals, "running")} digits=${0} metric='sparktier_running_requests{replica="${number}"}' />${" / "}<${Num} value=${all(signals, "queued")} digits=${0} metric='sparktier_queued_requests{replica="${number}"}' /> <span class="soft">of ${signals.max_running ?? "–"}</span><//>
    <${Fact} name="KV in use"><span data-metric='sparktier_kv_used_frac{replica="${number}",dp_rank="${signals.ranks[0].dp_rank}"}' data-value=${Math.max(...signals.ranks.map((rank) => rank.kv_used_frac))} title="sparktier_kv_used_frac">${percent(Math.max(...signals.ranks.map((rank) => rank.kv_used_frac)), 0)}</span><//>
    <${Fact} name="Step, real"><${Num} value=${step_ms} unit="ms" metric='sparktier_step_ms{replica="${number}",rung="${signals.rung}"}' /><//>
    <${Fact} name="Step, predicted">${drift ? html`<${Num} value=${step_ms / drift} unit="ms" /> <br /><span class="soft" style="font-weight:400" title='sparktier_drift_frac{replica="${number}"}'>real is ${drift.toFixed(2)} times that</span>` : html`<span class="soft">no table</span>`}<//>
    <${Fact} name="In prefill"><span title='sparktier_prefill_frac{replica="${number}"}'>${percent(signals.prefill_frac, 0)}</span><//>
    <${Fact} name="From this gateway"><span>${inFlight} in flight</span><//>
    <${Fact} name="Plan"><span title="epoch.version">${signals.epoch}.${signals.plan_version}</span><//>
  </dl>`;
}

function Tiers({ signals, tiers, number }) {
  const found = Object.entries(signals.accept_by_position).filter(([, chances]) => chances.length);
  if (!found.length) return html`<p class="empty">Nothing has been drafted yet.</p>`;
  return html`<div class="facts" style="grid-template-columns:repeat(auto-fit,minmax(170px,1fr))">${found.map(([tier, chances]) => html`<div>
    <div class="soft" style="font-size:12.5px">${tiers[tier] ?? `tier ${tier}`}: accepted by position</div>
    <div class="bars" role="img" aria-label=${`acceptance by position: ${chances.map((chance) => percent(chance, 0)).join(", ")}`}>${chances.map((chance, place) => html`<div style="height:${Math.round(100 * chance)}%" title=${`sparktier_acceptance_frac{replica="${number}",tier="${tier}",position="${place}"} ${chance.toFixed(3)}`}></div>`)}</div>
    <div class="positions" aria-hidden="true">${chances.map((chance) => html`<span>${Math.round(100 * chance)}</span>`)}</div>
    <div class="soft">${signals.accepted_tokens[tier] ? html`<strong style="color:var(--ink)">${signals.accepted_tokens[tier].p50.toFixed(2)}</strong> tokens a step` : ""}${signals.predicted_tokens[tier] ? `, ${signals.predicted_tokens[tier].toFixed(2)} predicted` : ""}</div>
  </div>`)}</div>`;
}
