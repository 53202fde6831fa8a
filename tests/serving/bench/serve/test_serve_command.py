"""`bench serve` against a scripted gateway over real sockets: its report, errors in it, keys, and Ctrl-C."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sparktier.serving.cli.main import main

CONFIG = """
model: {path: demo, served_name: tiny, context_tokens: 2048}
tiers:
  0: {name: standard, default: true}
  5: {name: gold, promise_tok_s: 20, ttft_ms: 1000}
"""


class ScriptedGateway(ThreadingHTTPServer):
    """Answers chats of 40 tokens at 25 tok/s by its own words, and refuses the prompts that say so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.held = threading.Event()
        self.arrived = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: ScriptedGateway

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions":
            self._json(200, {"usage": {"prompt_tokens": len(body["prompt"]) // 5}})
            return
        with self.server.lock:
            self.server.asked.append((dict(self.headers.items()), body))
        text = body["messages"][0]["content"]
        if "REFUSED" in text:
            self._json(429, {"error": {"code": "too_many_requests", "message": "no"}})
        elif "BROKEN" in text:
            self._begin("text/event-stream")
        elif "HELD" in text:
            self._begin("text/event-stream")
            self.server.arrived.set()
            self.server.held.wait(60)
        else:
            self._stream("standard" if "LOWER" in text else self.headers["x-sparktier-tier"])

    def _stream(self, tier: str) -> None:
        self._begin("text/event-stream")
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": "word"}}]} for _ in range(3)]
        served = {"tier": tier, "attained_tok_s": 25.0, "ttft_ms": 120.0}
        usage = {"prompt_tokens": 7, "completion_tokens": 40, "sparktier": served}
        for event in [*events, {"choices": [], "usage": usage}]:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def _json(self, status: int, content: object) -> None:
        self._begin("application/json", status)
        self.wfile.write(json.dumps(content).encode())

    def _begin(self, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    server = ScriptedGateway()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def prompts(folder: Path, *texts: str) -> list[str]:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"turns": [text]}) for text in texts))
    return ["--prompts", str(path)]


def bench(config: Path, gateway: ScriptedGateway, *options: str) -> list[str]:
    return ["bench", "serve", str(config), "--url", gateway.url, "--seconds", "1", "--rate", "30", *options]


def test_a_report_by_tier(config: Path, gateway: ScriptedGateway, tmp_path: Path) -> None:
    report = tmp_path / "serve.json"
    asked = prompts(tmp_path, "A fine question.", "REFUSED", "BROKEN", "LOWER")
    assert main(bench(config, gateway, *asked, "--json", str(report), "--seed", "3")) == 0
    standard, gold = json.loads(report.read_text())["rows"]
    lines = [json.loads(line) for line in report.with_suffix(".requests.jsonl").read_text().splitlines()]
    assert report.with_suffix(".png").exists()
    said = {"standard": [], "gold": []}  # type: dict[str, list[str]]
    for headers, body in gateway.asked:
        said[headers["x-sparktier-tier"]].append(body["messages"][0]["content"])
    assert (standard["tier"], standard["requests"], standard["attainment_frac"]) == (
        "standard",
        len(said["standard"]),
        None,
    )
    good = said["gold"].count("A fine question.")
    assert 0 < good < len(said["gold"])
    assert gold["attainment_frac"] == pytest.approx(good / len(said["gold"]), abs=1e-4)
    assert (gold["attained_tok_s_p50"], gold["ttft_ms_p99"]) == (25.0, 120.0)
    assert gold["errors"] == len([text for text in said["gold"] if text in ("REFUSED", "BROKEN")])
    assert (gold["refused"], gold["downgraded"]) == (said["gold"].count("REFUSED"), said["gold"].count("LOWER"))
    assert (gold["load"], gold["policy"], gold["unfinished"]) == (30.0, "fixed", 0)
    assert gold["client_ttft_ms_p50"] > 0
    assert len(lines) == len(gateway.asked)
    assert {line["error"] for line in lines} == {None, "429 too_many_requests", "lost"}


def test_two_runs_offer_the_same(config: Path, gateway: ScriptedGateway, tmp_path: Path) -> None:
    offered = []
    for run in ("first", "second"):
        gateway.asked.clear()
        report = tmp_path / f"{run}.json"
        assert main(bench(config, gateway, "--json", str(report), "--seed", "3", "--share", "gold=1")) == 0
        lines = [json.loads(line) for line in report.with_suffix(".requests.jsonl").read_text().splitlines()]
        bodies = sorted(json.dumps(body, sort_keys=True) for _, body in gateway.asked)
        offered.append(([(each["at_ms"], each["tier"], each["tenant"]) for each in lines], bodies))
        assert {headers["x-sparktier-tier"] for headers, _ in gateway.asked} == {"gold"}
    assert offered[0] == offered[1]


def test_tenants_show_their_keys_and_no_report_has_one(
    config: Path, gateway: ScriptedGateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys, report = tmp_path / "keys.json", tmp_path / "serve.json"
    keys.write_text('{"acme": "secret-1", "beta": "secret-2"}')
    assert main(bench(config, gateway, "--keys", str(keys), "--json", str(report))) == 0
    assert {headers["Authorization"] for headers, _ in gateway.asked} == {"Bearer secret-1", "Bearer secret-2"}
    written = report.read_text() + report.with_suffix(".requests.jsonl").read_text() + "".join(capfd.readouterr())
    assert "secret" not in written
    keys.write_text('{"acme": 1, "beta": "secret-2"}')
    assert main(bench(config, gateway, "--keys", str(keys))) == 2
    assert "secret" not in capfd.readouterr().err


def test_an_interrupted_run_reports_what_is_over(config: Path, gateway: ScriptedGateway, tmp_path: Path) -> None:
    report = tmp_path / "serve.json"
    asked = prompts(tmp_path, "A fine question.", "HELD")

    def interrupt() -> None:
        gateway.arrived.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    options = bench(config, gateway, *asked, "--json", str(report), "--seconds", "600", "--rate", "20")
    with contextlib.suppress(KeyboardInterrupt):
        assert main(options) == 130
    thread.join()
    rows = json.loads(report.read_text())["rows"]
    assert all(row["unfinished"] > 0 for row in rows)
    assert all(row["errors"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--share", "silver=1"], "--share: must name a tier: standard, gold (found silver)"),
        (["--share", "gold"], "must be TIER=WEIGHT"),
        (["--url", "localhost"], "--url: must begin with http:// or https://"),
        (["--url", "http://127.0.0.1:9"], "the gateway must answer"),
        (["--trace", "/nowhere.csv"], "must be a readable file of a trace"),
    ],
)
def test_bad_input_is_one_line(
    config: Path, gateway: ScriptedGateway, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main(bench(config, gateway, *options)) in (1, 2)
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparktier: ")]
    assert len(err) == 1
    assert said in err[0]
