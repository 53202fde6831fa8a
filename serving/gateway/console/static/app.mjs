// The console: a page of the gateway's internal listener. State that a link should keep is in the URL's query.
import { h, render } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";
import { act, load, key, setKey } from "./api.mjs";
import { Promises } from "./promises.mjs";
import { Replicas } from "./replicas.mjs";
import { Decisions } from "./decisions.mjs";
import { Requests } from "./requests.mjs";
import { Canary } from "./canary.mjs";

const html = htm.bind(h);
const PAGES = { promises: ["Promises", Promises], replicas: ["Replicas", Replicas], decisions: ["Decisions", Decisions],
  requests: ["Requests", Requests], canary: ["Canary", Canary] };
const POLL_MS = 2000, MOST_POINTS = 600;

function useQuery() {
  const [query, setQuery] = useState(() => new URLSearchParams(location.search));
  useEffect(() => {
    const back = () => setQuery(new URLSearchParams(location.search));
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  const change = useCallback((changes, { push = false } = {}) => {
    const next = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes)) value ? next.set(name, value) : next.delete(name);
    history[push ? "pushState" : "replaceState"](null, "", `${location.pathname}?${next}`);
    setQuery(next);
  }, []);
  return [query, change];
}

// Keeps what was seen while the page is open, for the lines of promises.
function remember(past, state) {
  const point = { at_s: state.at_ms / 1000, tiers: {} };
  for (const replica of state.replicas) {
    for (const [tier, spread] of Object.entries(replica.signals?.tok_s_per_user ?? {})) {
      const before = point.tiers[tier];
      point.tiers[tier] = before && before.p50 < spread.p50 ? before : spread;
    }
  }
  return [...past, point].slice(-MOST_POINTS);
}

function App() {
  const [query, change] = useQuery();
  const [state, setState] = useState(null);
  const [error, setError] = useState(null);
  const [past, setPast] = useState([]);
  const [asked, setAsked] = useState(null);
  const paused = query.get("paused") === "1";
  const page = PAGES[query.get("page")] ? query.get("page") : "promises";

  const poll = useCallback(async () => {
    const found = await load("state");
    if (found.denied) { setError(found.error); setAsked({ signIn: true }); return; }
    if (found.error) { setError(found.error); return; }
    setError(null); setState(found.value); setPast((before) => remember(before, found.value));
  }, []);
  useEffect(() => {
    if (paused && state) return;
    poll();
    const timer = setInterval(poll, POLL_MS);
    return () => clearInterval(timer);
  }, [paused, poll]);
  useEffect(() => {
    const theme = query.get("theme");
    theme ? document.documentElement.dataset.theme = theme : delete document.documentElement.dataset.theme;
    document.title = `${PAGES[page][0]} · sparktier console`;
  }, [query, page]);
  useEffect(() => {
    const names = Object.keys(PAGES);
    const pressed = (event) => {
      if (event.target.closest?.("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
      const number = Number(event.key);
      if (number >= 1 && number <= names.length) change({ page: names[number - 1] }, { push: true });
      if (event.key === "p") change({ paused: paused ? "" : "1" });
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [change, paused]);

  const View = PAGES[page][1];
  const troubles = { requests: state?.requests.length, canary: state?.replicas.filter((each) =>
    each.signals?.latched || each.signals?.canary.state === "alarmed").length };
  const theme = query.get("theme");
  return html`
    <header><div class="bar">
      <h1 class="brand">sparktier</h1>
      <nav aria-label="Pages"><ul>${Object.entries(PAGES).map(([name, [title]], place) => html`
        <li><a href="?page=${name}" aria-current=${name === page ? "page" : undefined} title="key ${place + 1}"
          onClick=${(event) => { event.preventDefault(); change({ page: name }, { push: true }); }}
          >${title}${troubles[name] ? html`<span class="count">${troubles[name]}</span>` : ""}</a></li>`)}
      </ul></nav>
      <div class="tools">
        <span id="updated">${paused ? "paused" : state ? new Date(state.at_ms).toLocaleTimeString("en-GB") : ""}</span>
        <button type="button" aria-pressed=${paused} title="key p" onClick=${() => change({ paused: paused ? "" : "1" })}>${paused ? "Go on" : "Pause"}</button>
        <button type="button" onClick=${() => change({ theme: theme === "dark" ? "light" : theme === "light" ? "" : "dark" })}>${theme ? `Theme: ${theme}` : "Theme: system"}</button>
        <button type="button" onClick=${() => setAsked({ signIn: true })}>${key() ? "Key set" : "Set key"}</button>
      </div>
    </div></header>
    <main id="page" data-page=${page}>
      ${error && html`<p class="banner bad" role="alert">${error}</p>`}
      ${state?.controller.enabled && state.controller.error && html`<p class="banner" role="status">${state.controller.error}</p>`}
      ${state ? html`<${View} state=${state} past=${past} query=${query} change=${change} paused=${paused} ask=${setAsked} />`
        : html`<p class="loading">${error ? "" : "Asking the gateway…"}</p>`}
    </main>
    ${asked && html`<${Ask} asked=${asked} close=${() => setAsked(null)} done=${poll} />`}`;
}

// Asks for the admin key, and before an action for who orders it and why.
function Ask({ asked, close, done }) {
  const box = useRef(null);
  const [problem, setProblem] = useState(null);
  const [sending, setSending] = useState(false);
  useEffect(() => { if (box.current && !box.current.open) box.current.showModal(); }, []);
  const send = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    setKey(form.get("key"));
    if (asked.signIn) { close(); done(); return; }
    setSending(true);
    sessionStorage.setItem("actor", form.get("actor"));
    const rung = form.get("rung");
    const wanted = { replica: asked.replica, action: asked.action, actor: form.get("actor"), reason: form.get("reason") ?? "" };
    const failed = await act(rung === null ? wanted : { ...wanted, rung: Number(rung) });
    setSending(false);
    if (failed) { setProblem(failed); return; }
    close(); done();
  };
  return html`
    <dialog ref=${box} onClose=${close} aria-labelledby="asked">
      <h3 id="asked">${asked.signIn ? "Admin key" : asked.title}</h3>
      ${asked.text && html`<p class="soft">${asked.text}</p>`}
      <form onSubmit=${send}>
        ${!asked.signIn && asked.rungs && html`<label class="field">Rung
          <select name="rung">${asked.rungs.map(([value, name]) => html`<option value=${value}>${value} ${name}</option>`)}</select></label>`}
        ${!asked.signIn && html`<label class="field">Your name, for the log
          <input name="actor" required maxlength="100" autocomplete="username" defaultValue=${sessionStorage.getItem("actor") ?? ""} /></label>
          <label class="field">Why <input name="reason" maxlength="300" /></label>`}
        <label class="field">Admin key of the run
          <input name="key" type="password" autocomplete="current-password" required=${!asked.signIn} defaultValue=${key()} /></label>
        ${problem && html`<p class="banner bad" role="alert">${problem}</p>`}
        <div class="right"><button type="button" onClick=${() => box.current.close()}>Cancel</button>
          <button class="primary" disabled=${sending}>${asked.signIn ? "Use it" : asked.confirm}</button></div>
      </form>
    </dialog>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
