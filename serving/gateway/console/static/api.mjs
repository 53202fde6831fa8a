// What the page asks of the gateway. The admin key stays in this tab, and is sent in a header that no browser sends by itself.
export const key = () => sessionStorage.getItem("key") ?? "";
export const setKey = (value) => value ? sessionStorage.setItem("key", value) : sessionStorage.removeItem("key");
const shown = () => key() ? { Authorization: `Bearer ${key()}` } : {};

export async function load(path) {
  try {
    const answer = await fetch(`/console/api/${path}`, { headers: shown(), cache: "no-store" });
    const value = await answer.json();
    return answer.ok ? { value } : { error: value.error, denied: answer.status === 401 };
  } catch {
    return { error: "The gateway does not answer. What is shown is what was last heard." };
  }
}

export async function act(wanted) {
  try {
    const headers = { ...shown(), "Content-Type": "application/json" };
    const answer = await fetch("/console/api/actions", { method: "POST", headers, body: JSON.stringify(wanted) });
    return answer.ok ? null : (await answer.json()).error;
  } catch {
    return "The gateway does not answer.";
  }
}
