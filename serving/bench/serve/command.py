"""Runs `sparktier bench serve`: starts the deployment or finds it running, offers each load, and shows the report."""

import asyncio
import contextlib
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sparktier.cluster.traffic.attainment import Promise, tier_row
from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.configs.files import read_json
from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.data.prompts import read_prompt_files
from sparktier.serving.bench.measured_replica import front_url, started
from sparktier.serving.bench.serve.asking import Asked, Asker
from sparktier.serving.bench.serve.offered import Load, Texts, load_of, shares_of
from sparktier.serving.bench.serve.output import print_table, write_plot, write_requests
from sparktier.serving.bench.serve.prompts import PROMPTS
from sparktier.serving.bench.serve.running import LoopClock, run_load
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.drafting.progress_bar import progress_bar

_TABLE_CHARACTERS = 170
# The gateway ends a request that takes too long, and says so.
_MARGIN_S = 30.0
_SAMPLE_CHARACTERS = 1000
# Only a trace asks how much fits, and it needs the setting.
_ANY_CONTEXT = 1 << 30


@dataclass(frozen=True)
class ServeOptions:
    """What is offered. `rates_s` without entries is a trace's own rate; `keys` is a file of tenants' keys."""

    url: str | None
    keys: Path | None
    rates_s: Sequence[float]
    trace: Path | None
    span_s: float
    weights: Mapping[str, float]
    prompts: Sequence[Path]
    tokens: int | None
    policy: str | None
    seed: int


def run(
    settings: Settings, options: ServeOptions, *, config: Path, overrides: Sequence[str], report: Path | None
) -> int:
    """Offer each load, print a table, and write `report`, a plot and each request beside it; return the exit status.

    Interrupted, it does so with what is over by then, and raises KeyboardInterrupt.

    Raises:
        ConfigError: an option names no tier, or nothing is to be offered.
        ArtifactError: a file of prompts, keys or a trace is broken.
        ReplicaError: the deployment did not start, or its gateway answers no prompt.
    """
    _require(settings, options)
    bench = _Bench(settings, options)
    console = Console(stderr=True)
    meta = report_meta("bench serve", options.seed)
    console.print(f"load average {meta.load_average[0]:.2f}; other work on this machine blurs the figures")
    rows: list[dict[str, Any]] = []
    requests: dict[float, Sequence[Asked]] = {}

    def save(load: Load, asked: Sequence[Asked]) -> None:
        requests[load.rate_s] = asked
        rows.extend(rows_of(load, asked, settings, policy=bench.policy))
        if report is not None:
            write_report(report, meta, rows)
            write_requests(requests, report.with_suffix(".requests.jsonl"))
            write_plot(rows, report.with_suffix(".png"))

    with _front(options.url, config, overrides) as url:
        whole = asyncio.run(bench.offer(url, console, save))
    if rows:
        print_table(rows, Console(width=_TABLE_CHARACTERS) if not sys.stdout.isatty() else Console())
    if not whole:
        raise KeyboardInterrupt
    return 0


class _Bench:
    """One run of the command."""

    def __init__(self, settings: Settings, options: ServeOptions) -> None:
        self._settings = settings
        self._options = options
        self._keys = read_tenant_keys(options.keys)
        self._tenants = list(self._keys) or [""]
        self._names = {tier: each.name for tier, each in settings.tiers.items()}
        files = read_prompt_files(options.prompts)
        self._prompts = [prompt.turns[0] for asked in files.values() for prompt in asked] or list(PROMPTS)
        self.policy = options.policy or ("controller" if settings.controller.enabled else "fixed")

    async def offer(self, url: str, console: Console, save: Callable[[Load, Sequence[Asked]], None]) -> bool:
        """Offer every load, tell `save` of each, and return whether none was interrupted."""
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopping.set)
        options = self._options
        async with AsyncReplicaClient() as client:
            clock = LoopClock()
            texts = await self._texts(self._asker(client, url, clock))
            shares = shares_of(self._tenants, self._names, options.weights)
            rates_s: Sequence[float | None] = options.rates_s or [None]
            for rate_s in rates_s:
                load = load_of(
                    texts,
                    shares,
                    rate_s=rate_s,
                    trace=options.trace,
                    span_s=options.span_s,
                    tokens=options.tokens,
                    seed=options.seed,
                )
                clock = LoopClock()
                asker = self._asker(client, url, clock)
                with progress_bar(f"requests at {load.rate_s:g} a second", len(load.requests), console) as (bar, task):
                    asked = await run_load(
                        load.requests, asker, clock, stopping=stopping, on_ended=lambda _: bar.advance(task)
                    )
                save(load, asked)
                if stopping.is_set():
                    return False
        return True

    async def _texts(self, asker: Asker) -> Texts:
        sample = "\n\n".join(self._prompts)[:_SAMPLE_CHARACTERS]
        characters = await asker.characters_per_token(sample, self._tenants[0])
        return Texts(self._prompts, characters, self._settings.model.context_tokens or _ANY_CONTEXT)

    def _asker(self, client: AsyncReplicaClient, url: str, clock: LoopClock) -> Asker:
        return Asker(
            client,
            url,
            model=self._settings.model.public_name,
            names=self._names,
            keys=self._keys,
            timeout_s=self._settings.server.request_timeout_s + _MARGIN_S,
            now_ms=clock.now_ms,
        )


def rows_of(load: Load, asked: Sequence[Asked], settings: Settings, *, policy: str) -> list[dict[str, Any]]:
    """Return the report row of each tier that was asked for."""
    took_ms = max((each.ended_ms for each in asked), default=load.span_ms)
    tokens = sum(each.result.tokens for each in asked)
    rows = []
    for tier, each in settings.tiers.items():
        own = [found for found in asked if found.offered.arrival.tier == tier]
        if not own:
            continue
        row = tier_row(
            [found.result for found in own],
            Promise(each.name, each.promise_tok_s, each.ttft_ms),
            span_ms=load.span_ms,
            took_ms=took_ms,
            throughput_tok_s=1000.0 * tokens / took_ms,
        )
        seen = {
            "client_tok_s_p50": _median([found.client_tok_s for found in own]),
            "client_ttft_ms_p50": _median([found.client_ttft_ms for found in own]),
            "late_ms_most": round(max(found.late_ms for found in own), 1),
            "clipped": load.clipped,
            "unfinished": len(load.requests) - len(asked),
        }
        rows.append({"load": round(load.rate_s, 4), "policy": policy, **row, **seen})
    return rows


def read_tenant_keys(path: Path | None) -> dict[str, str]:
    """Return the keys of tenants from a JSON file, `{"tenant": "key"}`; empty without a file.

    Raises:
        ArtifactError: it holds something else; what it holds is not told.
    """
    if path is None:
        return {}
    found = read_json(path, "keys by tenant")
    if not found or not all(isinstance(key, str) and key.isascii() and key.isprintable() for key in found.values()):
        cure = 'Write {"tenant": "key"}.'
        raise ArtifactError(f"{path}: must map each tenant to its key (found something else). {cure}")
    return found


@contextlib.contextmanager
def _front(url: str | None, config: Path, overrides: Sequence[str]) -> Iterator[str]:
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    with started(config, overrides) as output:
        yield front_url(output)


def _require(settings: Settings, options: ServeOptions) -> None:
    names = [tier.name for tier in settings.tiers.values()]
    problems = [
        Problem("--share", f"must name a tier: {', '.join(names)}", name, "Correct the name.")
        for name in options.weights
        if name not in names
    ]
    if options.trace is None and not options.rates_s:
        problems.append(Problem("--rate", "must be given where there is no --trace", "neither", "Add --rate 1."))
    if options.trace is not None and settings.model.context_tokens is None:
        cure = "Add --set model.context_tokens=8192 or what the deployment has."
        problems.append(Problem("model.context_tokens", "must be set to fit a trace's requests", "null", cure))
    if options.url is not None and not options.url.startswith(("http://", "https://")):
        problems.append(Problem("--url", "must begin with http:// or https://", options.url, "Correct it."))
    if problems:
        raise ConfigError(problems)


def _median(values: Sequence[float | None]) -> float | None:
    found = sorted(value for value in values if value is not None)
    return round(found[math.ceil(len(found) / 2) - 1], 2) if found else None
