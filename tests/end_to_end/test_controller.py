"""A deployment that its controller steers: what it decides is read back from the rank, and its end is no outage."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.room import Room
from sparktier.configs.contracts.signals import Signals
from sparktier.serving.clients.replica_keys import bearer
from support import replica_http
from support.deployment import MODEL, ROOT, SHOWN, THREE_TIERS, Deployment, deployed, wait_until, write_tiers
from support.generation import generate_all, random_prompts

pytestmark = pytest.mark.engine
STANDARD, GOLD, LONE = 0, 5, 7
CHAIN = 2
TTL_MS = 3000
TIERS = {**THREE_TIERS, GOLD: {"name": "gold", "promise_tok_s": 40.0, "weight": 4.0, "cap_users": 3}}
WORDS = ("sparktier.serving.cli.main", "controller", "--replicas")


@pytest.fixture(scope="module")
def steered(predictable: Path, bigrams: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One replica of one rank with a chain, three tiers, and a controller that ticks twice a second."""
    folder = tmp_path_factory.mktemp("steered")
    settings = {
        "replicas.tensor_parallel": 1,
        "replicas.expert_parallel": 1,
        "speculation.method": "chain",
        "speculation.draft_path": bigrams,
        "speculation.safe_rung": 1,
        "controller.enabled": True,
        "controller.tick_ms": 500,
        "controller.hold_ms": 2000,
        "controller.ttl_ms": TTL_MS,
        "controller.stale_ms": 2000,
        "supervision.restart_backoff_first_s": 0.5,
    }
    with deployed(predictable, folder / "output", config=write_tiers(folder / "c.yaml", TIERS), **settings) as up:
        wait_until(lambda: told(up)["replicas"] == {"replica-0": "steered"}, timeout_s=60, what=lambda: log_of(up))
        yield up


def log_of(up: Deployment) -> str:
    return (up.deployment_dir / "controller.log").read_text() + up.output


def url_of(up: Deployment) -> str:
    return up.output.rsplit("controller on ", 1)[1].split()[0]


def told(up: Deployment) -> dict[str, Any]:
    """What the controller says of itself; nothing while it is away."""
    try:
        answer = httpx.get(f"{url_of(up)}/sparktier/state", headers=bearer(up.keys.admin), timeout=10.0)
    except httpx.HTTPError:
        return {"epoch": None, "lease": "away", "replicas": {}}
    found: dict[str, Any] = answer.json()
    return found


def signals(up: Deployment) -> Signals:
    answer = replica_http.get(f"{up.replica_url()}/sparktier/signals", timeout=30.0)
    assert answer.status_code == 200, answer.text
    return Signals.model_validate_json(answer.content)


def lines(up: Deployment) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (up.deployment_dir / "decisions.jsonl").read_text().splitlines()]


def controller_process(up: Deployment) -> psutil.Process:
    return up.process(*WORDS)


def test_what_it_decides_is_in_force_on_the_rank(steered: Deployment) -> None:
    found, state = signals(steered), told(steered)
    assert (state["lease"], state["epoch"]) == ("leading", 2)
    assert found.epoch == state["epoch"]
    assert (found.rung, found.expired) == (CHAIN, False)
    assert found.shares[GOLD].model_dump() == {"promise_tok_s": 40.0, "weight": 4.0, "cap_tokens": None}
    answer = httpx.get(f"{url_of(steered)}/sparktier/plan", headers=bearer(steered.keys.admin), timeout=10.0)
    plan = read_message(Plan, answer.content)
    assert plan.replicas[0].tiers[GOLD].cap_users == 3
    assert plan.replicas[0].tiers[STANDARD].cap_users is None
    assert plan.replicas[0].url == steered.replica_url()
    kinds = [line["kind"] for line in lines(steered)]
    assert {"start", "decision", "state"} <= set(kinds)
    [first] = [line["decision"] for line in lines(steered) if line["kind"] == "decision"][:1]
    assert "without step times" in first["reason"]


def test_no_more_users_run_than_the_plan_has_caps_for(steered: Deployment) -> None:
    """Three run and the others wait in the gateway: the replica's own room says so."""
    url = f"{steered.replica_url()}/sparktier/room"
    fields = {"model": MODEL, "prompt": "ba be", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    headers = {**SHOWN, "x-sparktier-tier": "gold"}

    def ask(place: int) -> int:
        return httpx.post(f"{steered.url}/v1/completions", json=fields, headers=headers, timeout=300.0).status_code

    most, least_room = 0, 3
    with (
        ThreadPoolExecutor(9) as pool,
        httpx.stream("GET", url, headers=bearer(steered.keys.admin), timeout=300.0) as told_room,
    ):
        asking = [pool.submit(ask, place) for place in range(8)]
        for line in told_room.iter_lines():
            room = read_message(Room, line)
            least_room = min(least_room, room.room[GOLD])
            most = max(most, signals(steered).ranks[0].running.get(GOLD, 0))
            if all(each.done() for each in asking):
                break
    assert [each.result() for each in asking] == [200] * 8
    assert most <= 3
    assert least_room == 0


def test_its_routes_ask_for_the_admin_key(steered: Deployment) -> None:
    for path in ("/sparktier/plan", "/sparktier/state", "/sparktier/decisions", "/metrics"):
        for headers in ({}, bearer(steered.keys.requests)):
            assert httpx.get(url_of(steered) + path, headers=headers, timeout=10.0).status_code == 401
    page = httpx.get(f"{url_of(steered)}/metrics", headers=bearer(steered.keys.admin), timeout=10.0).text
    assert 'sparktier_controller_replicas{state="steered"} 1.0' in page
    assert "sparktier_controller_leading 1.0" in page


def test_its_decisions_are_shown_in_words(steered: Deployment) -> None:
    command = [sys.executable, "-m", "sparktier.serving.cli.main", "decisions", "--url", url_of(steered)]
    shown = subprocess.run(
        [*command, "--keys", str(steered.keys_file)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "epoch 2 begins, without step times" in shown
    assert "users 0: any, 5: 3, 7: any" in shown
    assert "replica-0 is steered" in shown


def test_a_reload_of_tiers_goes_through_it(steered: Deployment) -> None:
    before = signals(steered)
    try:
        write_tiers(steered.config, {**TIERS, GOLD: {**TIERS[GOLD], "weight": 7.0}})
        assert "weight 4.0 -> 7.0" in steered.reload("tiers reloaded")
        wait_until(lambda: signals(steered).shares[GOLD].weight == 7.0, timeout_s=20, what=lambda: log_of(steered))
    finally:
        write_tiers(steered.config, TIERS)
        steered.reload("tiers reloaded")
    wait_until(lambda: signals(steered).shares == before.shares, timeout_s=20, what=lambda: log_of(steered))
    assert signals(steered).epoch == before.epoch


def test_an_older_epoch_is_fenced(steered: Deployment) -> None:
    plan = httpx.get(f"{url_of(steered)}/sparktier/plan", headers=bearer(steered.keys.admin), timeout=10.0).json()
    answer = replica_http.post(
        f"{steered.replica_url()}/sparktier/plan", json={**plan, "epoch": 1, "version": 10**15}, timeout=30.0
    )
    assert answer.status_code == 409
    assert "must rise" in answer.text
    assert told(steered)["replicas"] == {"replica-0": "steered"}


def test_a_killed_controller_comes_back_without_an_effect(steered: Deployment) -> None:
    before, answers = (
        signals(steered),
        generate_all(steered.replica_url(), random_prompts(2, seed=1), tokens=32, at_once=2),
    )
    process = controller_process(steered)
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: "controller ended" in steered.output, timeout_s=30, what=lambda: steered.output)
    wait_until(
        lambda: (state := told(steered))["lease"] == "leading" and state["replicas"] == {"replica-0": "steered"},
        timeout_s=60,
        what=lambda: log_of(steered),
    )
    # A machine that starts it slowly has the safe rung meanwhile, until the new one may move it.
    wait_until(lambda: signals(steered).rung == before.rung, timeout_s=60, what=lambda: log_of(steered))
    after = signals(steered)
    assert (after.rows, after.shares, after.expired) == (before.rows, before.shares, False)
    assert after.epoch == before.epoch + 1
    again = generate_all(steered.replica_url(), random_prompts(2, seed=1), tokens=32, at_once=2)
    assert [answer.tokens for answer in again] == [answer.tokens for answer in answers]


def test_a_second_controller_with_the_lease_stands_by_and_takes_over(steered: Deployment, tmp_path: Path) -> None:
    """Both are given the same lease: the one that waits decides once the other is gone."""
    folder, epoch = steered.deployment_dir, told(steered)["epoch"]
    first = controller_process(steered)
    command = [sys.executable, "-m", "sparktier.serving.cli.main", "controller", str(folder / "settings.yaml")]
    command += ["--replicas", str(folder / "replicas.json"), f"--set=controller.log_path={tmp_path / 'second.jsonl'}"]
    output = tmp_path / "second.log"
    with output.open("wb") as log:
        env = {"SPARKTIER_KEYS_FILE": str(steered.keys_file), "PATH": "/usr/bin:/bin"}
        second = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:

        def seconds() -> list[dict[str, Any]]:
            path = tmp_path / "second.jsonl"
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

        wait_until(lambda: bool(seconds()), timeout_s=60, what=lambda: output.read_text())
        assert seconds()[0]["state"] == "standby"
        assert told(steered)["epoch"] == epoch
        # Stopped, its lock is still held; killed, it is free.
        first.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        assert [line["state"] for line in seconds() if line["kind"] == "state"] == ["standby"]
        first.send_signal(signal.SIGKILL)
        wait_until(
            lambda: (
                any(line.get("state") in ("leading", "steered") for line in seconds())
                or told(steered)["lease"] == "leading"
            ),
            timeout_s=60,
            what=lambda: output.read_text() + log_of(steered),
        )
        wait_until(lambda: signals(steered).epoch > epoch, timeout_s=30, what=lambda: log_of(steered))
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(20) == 0, output.read_text()
    wait_until(lambda: told(steered)["lease"] == "leading", timeout_s=60, what=lambda: log_of(steered))
    wait_until(
        lambda: told(steered)["replicas"] == {"replica-0": "steered"}, timeout_s=60, what=lambda: log_of(steered)
    )
    assert signals(steered).rung == CHAIN


def test_without_a_controller_the_plan_s_time_ends_and_with_it_again_the_rung_comes_back(steered: Deployment) -> None:
    process = controller_process(steered)
    process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: signals(steered).expired, timeout_s=TTL_MS / 1000 + 20, what=lambda: log_of(steered))
        assert signals(steered).rung == 1
    finally:
        process.send_signal(signal.SIGCONT)
    wait_until(
        lambda: (found := signals(steered)).rung == CHAIN and not found.expired,
        timeout_s=30,
        what=lambda: log_of(steered),
    )


def test_a_replica_that_starts_anew_is_steered_again(steered: Deployment) -> None:
    serves = steered.output.count("replica 0 serves on")
    steered.process("sparktier.serving.cli.main", "engine", "--replica 0").send_signal(signal.SIGKILL)
    wait_until(lambda: steered.output.count("replica 0 serves on") > serves, timeout_s=300, what=lambda: steered.output)
    wait_until(
        lambda: told(steered)["replicas"] == {"replica-0": "steered"}, timeout_s=60, what=lambda: log_of(steered)
    )
    assert signals(steered).epoch == told(steered)["epoch"]
