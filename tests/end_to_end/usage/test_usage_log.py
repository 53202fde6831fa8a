"""The log of use of a running gateway: each request has the engine's count of its tokens, after a kill of the gateway
too, and nowhere in what a run leaves behind is a key or a prompt.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sparktier.serving.cli.main import main
from sparktier.serving.clients.replica_keys import bearer
from sparktier.serving.gateway.usage_log.journal import FILES
from sparktier.serving.gateway.usage_log.records import UsageRecord, latest, records_in
from sparktier.serving.gateway.usage_log.settlement import tokens_of
from support.deployment import CLIENT_KEY, MODEL, ROOT, SHOWN, Deployment, wait_until
from support.ended_requests import ended
from support.inputs.tenants import OTHER_KEY, PEPPER
from support.span_collector import SpanCollector

pytestmark = pytest.mark.engine
MARKED = "zebra-quartz-4417"
CHAT = {"messages": [{"role": "user", "content": f"ba be {MARKED}"}]}
ANSWER = {"model": MODEL, "max_tokens": 24, "temperature": 0, "ignore_eos": True}


def held(folder: Path) -> dict[str, UsageRecord]:
    """Return the record that holds for each request, by the client's id."""
    lines = [line for file in sorted(folder.glob(FILES)) for line in file.read_bytes().splitlines()]
    return {record.request_id: record for record in latest(records_in(lines)).values()}


def settled(folder: Path, request_id: str) -> UsageRecord:
    """Return the final record of a request."""

    def is_settled() -> bool:
        return request_id in held(folder) and held(folder)[request_id].is_settled

    wait_until(is_settled, timeout_s=60.0, what=lambda: f"a final record of {request_id} in {held(folder)}")
    return held(folder)[request_id]


@pytest.fixture(scope="module")
def log(drafting: Deployment) -> Path:
    return drafting.config.parent / "usage"


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", CHAT),
    "streamed-chat": ("chat/completions", {**CHAT, "stream": True}),
    "choices": ("completions", {"prompt": MARKED, "n": 3, "stream": True}),
    "prompts": ("completions", {"prompt": ["ba", f"ba {MARKED}"], "n": 2}),
    "streamed-prompts": ("completions", {"prompt": ["ba", f"ba {MARKED}"], "stream": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_has_the_engine_s_count_by_request(drafting: Deployment, log: Path, case: str) -> None:
    path, fields = CASES[case]
    headers = {**SHOWN, "x-request-id": case, "x-sparktier-tier": "gold"}
    answer = httpx.post(f"{drafting.url}/v1/{path}", json={**ANSWER, **fields}, headers=headers, timeout=120.0)
    assert answer.status_code == 200, answer.text
    # Before the last byte of the answer leaves.
    record = held(log)[case]
    assert (record.state, record.tenant, record.tier) == ("complete", "tenant-0", "gold")
    found = ended(drafting.replica_url(), record.engine_id)
    assert (record.prompt_tokens, record.completion_tokens) == tokens_of(found)
    assert record.completion_tokens == 24 * record.users
    assert {each.tier for each in found} == {5}


@pytest.mark.parametrize("choices", [1, 2])
def test_a_stream_that_is_hung_up_on_is_settled_by_the_engine(drafting: Deployment, log: Path, choices: int) -> None:
    body = {**ANSWER, "prompt": MARKED, "stream": True, "max_tokens": 4000, "n": choices}
    headers = {**SHOWN, "x-request-id": f"hung-up-{choices}"}
    hang_up(drafting.url, body, headers)
    record = settled(log, f"hung-up-{choices}")
    assert record.state == "complete"
    assert (record.prompt_tokens, record.completion_tokens) == tokens_of(
        ended(drafting.replica_url(), record.engine_id)
    )
    assert 5 <= record.completion_tokens < 4000 * choices


def hang_up(url: str, body: dict[str, Any], headers: dict[str, str]) -> None:
    """Ask for a stream, and hang up after some of its events."""
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=120.0) as answer:
        for seen, _ in enumerate(line for line in answer.iter_lines() if line.startswith("data: {")):
            if seen == 5:
                break


def test_what_the_engine_refuses_has_used_nothing(drafting: Deployment, log: Path) -> None:
    body = {**ANSWER, "prompt": MARKED, "regex": "(", "max_tokens": 3}
    headers = {**SHOWN, "x-request-id": "refused"}
    answer = httpx.post(f"{drafting.url}/v1/completions", json=body, headers=headers, timeout=60.0)
    assert answer.status_code == 400
    if "refused" in held(log):
        assert settled(log, "refused").completion_tokens == 0


def test_the_command_sums_it(drafting: Deployment, log: Path, tmp_path: Path) -> None:
    assert main(["usage", str(log), "--by", "tenant,tier", "--json", str(tmp_path / "use.json")]) == 0
    rows = json.loads((tmp_path / "use.json").read_text())["rows"]
    gold = [row for row in rows if (row["tenant"], row["tier"]) == ("tenant-0", "gold")]
    records = [each for each in held(log).values() if (each.tenant, each.tier) == ("tenant-0", "gold")]
    assert [row["completion_tokens"] for row in gold] == [sum(each.completion_tokens for each in records)]


@contextlib.contextmanager
def gateway(replica_url: str, keys_file: Path, folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A gateway of its own before the replica, killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [replica_url, str(keys_file), str(folder), str(port)]
    command = [sys.executable, "-m", "support.probes.gateway_process", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(command, cwd=ROOT, env=env) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{url}/healthz", timeout=5.0).status_code == 200
            return False

        try:
            wait_until(answers, timeout_s=120.0, what=lambda: "the gateway")
            yield url, process
        finally:
            process.kill()


def test_a_gateway_that_is_killed_leaves_what_the_next_one_settles(drafting: Deployment, tmp_path: Path) -> None:
    replica, keys, folder = drafting.replica_url(), drafting.keys_file, tmp_path / "usage"
    body = {**ANSWER, "prompt": "ba be", "stream": True, "max_tokens": 4000, "n": 2}
    with (
        gateway(replica, keys, folder) as (url, process),
        httpx.stream(
            "POST", f"{url}/v1/completions", json=body, headers={"x-request-id": "cut"}, timeout=120.0
        ) as answer,
        contextlib.suppress(httpx.HTTPError),
    ):
        for seen, _ in enumerate(answer.iter_lines()):
            if seen == 10:
                process.kill()
    left = held(folder)["cut"]
    assert (left.state, left.completion_tokens) == ("open", 0)
    counted = tokens_of(ended(replica, left.engine_id))
    with gateway(replica, keys, folder):
        record = settled(folder, "cut")
    assert record.state == "complete"
    assert (record.prompt_tokens, record.completion_tokens) == counted
    assert record.completion_tokens > 5


def test_spans_lead_from_the_client_through_the_gateway_into_the_steps(
    drafting: Deployment, collector: SpanCollector
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {**SHOWN, "traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "traced"}
    body = {**ANSWER, "prompt": MARKED, "stream": True}
    assert httpx.post(f"{drafting.url}/v1/completions", json=body, headers=headers, timeout=120.0).status_code == 200

    def ours() -> dict[str, Any]:
        return {span.name: span for span in collector.spans if span.trace_id.hex() == trace}

    wait_until(lambda: "/v1/completions" in ours(), timeout_s=60.0, what=lambda: f"the request among {ours()}")
    spans = ours()
    whole = spans["/v1/completions"]
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    stages = {"queue", "route", "first_token", "stream", "prefill"}
    assert spans.keys() == {"/v1/completions", *stages}
    assert {spans[name].parent_span_id for name in stages} == {whole.span_id}
    # Never one for each of the two dozen chunks.
    assert sum(span.trace_id.hex() == trace for span in collector.spans) == 6

    def steps() -> list[Any]:
        links = [(span, link) for span in collector.spans if span.name == "decode" for link in span.links]
        return [span for span, link in links if link.span_id == whole.span_id]

    wait_until(lambda: len(steps()) > 2, timeout_s=60.0, what=lambda: "steps that are linked to the request")


def test_metrics_of_the_gateway_are_beside_those_of_replicas(drafting: Deployment) -> None:
    text = httpx.get(f"{drafting.internal_url}/metrics", timeout=60.0).text
    counted = 'sparktier_gateway_requests_total{route="/v1/completions",status="200",tier="gold"}'
    assert counted in text
    assert 'sparktier_gateway_first_token_ms_count{tier="gold"}' in text
    assert "sparktier_gateway_usage_lost_records_total 0.0" in text
    assert 'sparktier_rung{replica="0"' in text


def test_no_key_and_no_prompt_is_in_anything_that_a_run_leaves(
    drafting: Deployment, collector: SpanCollector, log: Path
) -> None:
    for key in (CLIENT_KEY, OTHER_KEY, "sk-wrong-key-77"):
        body = {**ANSWER, "prompt": MARKED}
        httpx.post(f"{drafting.url}/v1/completions", json=body, headers=bearer(key), timeout=60.0)
    hang_up(drafting.url, {**ANSWER, "prompt": MARKED, "stream": True, "max_tokens": 900}, SHOWN)
    files = [file for folder in (drafting.deployment_dir, log) for file in folder.rglob("*") if file.is_file()]
    texts = {str(file): file.read_text(errors="replace") for file in files if file != drafting.keys_file}
    texts["output"] = drafting.output
    texts["spans"] = "".join(map(str, collector.spans))
    texts["metrics"] = httpx.get(f"{drafting.internal_url}/metrics", timeout=60.0).text
    assert '"event": "request"' in texts["output"]
    assert any("usage-" in name for name in texts)
    secrets = [MARKED, OTHER_KEY, "sk-wrong-key-77", PEPPER, drafting.keys.requests, drafting.keys.admin]
    found = [(name, secret) for name, text in texts.items() for secret in secrets if secret in text]
    assert not found
