"""A console on real sockets before two replicas and a controller: their real routes, over ranks that never ran."""

import contextlib
import importlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import uvicorn

from sparktier.configs.contracts.decision import Decision, Depth
from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierPromise
from sparktier.configs.contracts.signals import CanaryReport
from sparktier.configs.plan_keys import LATCH_KEY, EnginePlan, Rung, TierTerms
from sparktier.configs.settings.settings import TierSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_keys import bearer
from sparktier.serving.controller.decision_log import DecisionLog
from sparktier.serving.controller.orders import Orders
from sparktier.serving.controller.routes import routes
from sparktier.serving.engine.key_guard import KeyGuard
from sparktier.serving.engine.room import RoomKeeper, StartingRoom
from sparktier.serving.engine.telemetry.admin_routes import admin_routes
from sparktier.serving.engine.telemetry.ended_requests import EndedRequests
from sparktier.serving.engine.telemetry.observer import STATES
from sparktier.serving.engine.telemetry.rank_state import RankState, dump
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats
from sparktier.serving.gateway.console.guard import Guard
from sparktier.serving.gateway.console.routes import console_routes
from sparktier.serving.gateway.console.sources import Sources
from sparktier.serving.gateway.core.ask import Ask, Kind
from sparktier.serving.gateway.core.observer import Outcome, Phase
from sparktier.serving.gateway.http.internal import internal_app
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from sparktier.serving.gateway.telemetry.open_requests import OpenRequests
from sparktier.serving.gateway.tenants.directory import Entitlement, Tenant
from sparktier.serving.gateway.tier_resolution import TierAsk
from support.gateways.fronts import listening, serving
from support.rank_states import rank_state

ADMIN_KEY = "the-admin-key-of-the-test"
TIERS = {
    0: TierSettings(name="standard", default=True),
    1: TierSettings(name="gold", promise_tok_s=40.0, ttft_ms=800, weight=4.0),
    2: TierSettings(name="silver", promise_tok_s=25.0, weight=2.0),
}
PLAN = EnginePlan(
    epoch=3,
    version=41,
    rung=Rung.TREE,
    rows=48,
    tiers={0: TierTerms(), 1: TierTerms(40.0, weight=4.0), 2: TierTerms(25.0, weight=2.0)},
)


class Ranks:
    """One rank behind SGLang's tokenizer manager; an order to latch changes its state."""

    def __init__(self, state: RankState) -> None:
        self.state = state

    def auto_create_handle_loop(self) -> None:
        """Nothing to make."""

    async def get_internal_state_communicator(self, request: Any) -> list[Any]:
        """Tell the state."""
        return [SimpleNamespace(internal_state={STATES: dump([self.state])})]

    async def set_internal_state(self, request: Any) -> list[bool]:
        """Take an order."""
        latched = request.server_args.get(LATCH_KEY)
        if latched is not None:
            cause = "an operator ordered it" if latched else None
            self.state = replace(self.state, latched=cause, plan=replace(PLAN, rung=Rung.OFF if latched else Rung.TREE))
        return [True]


class Told:
    """As much of a controller as its routes ask."""

    def __init__(self) -> None:
        self.states = {"replica-0": "steered", "replica-1": "steered"}
        self.epoch, self.standing, self.plan = 3, "leading", None


@dataclass
class World:
    """`url` of the internal listener; what a test may change."""

    url: str
    ranks: list[Ranks]
    controller: uvicorn.Server
    requests: OpenRequests
    log: DecisionLog
    orders: Orders
    asked: list[str] = field(default_factory=list)


def _stats(acceptance: dict[int, list[float]]) -> SpeculationStats:
    stats = SpeculationStats(block_tokens=5, rung=3)
    for tier, chances in acceptance.items():
        found, reached = stats.stats_for(tier), 1000.0
        for position, chance in enumerate(chances):
            found.verified[position], found.accepted[position] = reached, reached * chance
            reached *= chance
        found.rounds, found.rows, found.tokens = 1000, 9000, 3100
        found.recent_rounds, found.recent_tokens = 1000.0, 3100.0
        found.predicted_rounds, found.predicted_tokens = 1000.0, 3040.0
    return stats


def _state(number: int) -> RankState:
    quick = 1.0 if number == 0 else 0.82
    return rank_state(
        plan=PLAN,
        running={0: 6 - 3 * number, 1: 4, 2: 2},
        queued={0: 2} if number else {},
        kv_used_frac=0.41 + 0.3 * number,
        step_ms={0: 17.5, 3: 31.25 / quick},
        prefill_frac=0.14,
        speeds={0: [18.0 * quick, 22.0, 31.0], 1: [44.0 * quick, 48.5, 52.0], 2: [26.5, 28.25, 33.0]},
        met={1: (985 - 40 * number, 1000), 2: (498, 500)},
        accepted_tokens={0: [2.4, 3.1, 3.6], 1: [2.9, 3.3], 2: [3.0]},
        drift_frac=1.08 + 0.2 * number,
        max_running=16,
        arrivals_s={0: 0.8, 1: 0.5, 2: 0.2},
        queue_age_ms={0: 1800} if number else {},
        spec_stats=_stats({0: [0.71, 0.6, 0.52, 0.4, 0.33], 1: [0.83, 0.74, 0.66, 0.58, 0.47], 2: [0.78, 0.7, 0.61]}),
        canary=CanaryReport(
            state="watching",
            scored_tokens=18_240 + number,
            alarms=0,
            far_tokens=3,
            level_frac=0.18 * number,
            score_steps=412,
            steps=61_800,
        ),
    )


def decision(number: int, at_ms: int) -> tuple[Decision, Plan]:
    """A decision as the controller writes one down, with the plan that it is part of."""
    before = Depth(rung=2, rows=40, caps={0: 6, 1: 4, 2: None})
    after = Depth(rung=3 if number % 2 else 2, rows=48, caps={0: 6 + number % 3, 1: 4, 2: None})
    found = Decision(
        at_ms=at_ms,
        replica_id=f"replica-{number % 2}",
        before=before,
        after=after,
        reason=f"rung {after.rung} is worth {210 + number} tok/s, rung 2 {190 + number}; room for more by the model",
        inputs={"replica_id": f"replica-{number % 2}", "now_ms": 1000 * number, "wanted": {"0": 6, "1": 4}},
    )
    part = ReplicaPlan(
        replica_id=f"replica-{number % 2}", url="http://10.0.0.1:1", state="serving", rung=after.rung, rows=48, tiers={}
    )
    tiers = {0: TierPromise(name="standard")}
    return found, Plan(
        epoch=3,
        version=40 + number,
        issued_at_ms=at_ms,
        ttl_ms=10_000,
        default_tier=0,
        tiers=tiers,
        replicas=(part,),
    )


def ask(request_id: str, tenant: str) -> Ask:
    """A request of a tenant, as the core gets one."""
    who = Tenant(tenant, Entitlement(frozenset(TIERS), 0))
    return Ask(Kind.CHAT, {}, TierAsk(), who, request_id, deadline_s=1e9)


@contextlib.asynccontextmanager
async def console_world(folder: Path, *, bound_host: str = "127.0.0.1") -> AsyncIterator[World]:
    """Yield a console whose guard believes that its listener is on `bound_host`."""
    # What a reading of ranks imports takes longer than a page waits.
    importlib.import_module("sglang.srt.managers.io_struct")
    log, orders = DecisionLog(folder / "decisions.jsonl", file_bytes=1 << 20), Orders(folder / "orders.json")
    now_ms = round(time.time() * 1000)
    log.state(now_ms - 90_000, "lease", "leading", "epoch 3")
    log.state(now_ms - 80_000, "replica-0", "steered", "plan 41 is in force")
    for number in range(8):
        log.decision(*decision(number, now_ms - 60_000 + 5000 * number))
    now_s = [1000.0]
    requests = OpenRequests(clock=lambda: now_s[0])
    requests.began(ask("req-waits", "acme"))
    silent = requests.began(ask("req-silent", "globex"))
    requests.reached(silent, Phase.SENT)
    requests.ended(requests.began(ask("req-lost", "acme")), Outcome(502, "replica_lost", tier="gold", replica=1))
    now_s[0] += 25.0
    ranks = [Ranks(_state(number)) for number in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for number, each in enumerate(ranks):
            app = fastapi.FastAPI()
            app.include_router(
                admin_routes([], each, EndedRequests(), RoomKeeper(StartingRoom({}, 0)), replica_id=f"replica-{number}")
            )
            guarded = KeyGuard(app, requests_key="requests", admin_key=ADMIN_KEY)
            url, _ = await stack.enter_async_context(listening(guarded))
            urls.append(url)
        controller_app = routes(Told(), log, orders, admin_key=ADMIN_KEY)  # type: ignore[arg-type]
        controller_url, controller = await stack.enter_async_context(listening(controller_app))
        client = await stack.enter_async_context(AsyncReplicaClient(bearer(ADMIN_KEY)))
        table = ReplicaTable(tuple(serving(number, url) for number, url in enumerate(urls)))
        sources = Sources(table, client, tiers=lambda: TIERS, controller=lambda: controller_url, requests=requests)
        console = console_routes(sources, Guard(bound_host, ADMIN_KEY))
        internal = internal_app(table, client, GatewayMetrics(), console)
        url, _ = await stack.enter_async_context(listening(internal))
        yield World(url, ranks, controller, requests, log, orders)
    log.close()
