"""The engines of `sparktier bench tiers --engine`: one rank of a deployment that runs one policy after another."""

from typing import NamedTuple

from sparktier.cluster.simulator.outcome import LENIENT, STRICT
from sparktier.cluster.simulator.policies import Paced, Policy
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.loading.loader import load_settings
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers.settings import TableSettings
from sparktier.serving.bench.tiers.stepped import started
from sparktier.serving.bench.tiers.virtual_engine import VirtualEngine
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.stepping import Place
from sparktier.serving.supervision.processes import held_port


class _Started(NamedTuple):
    table: TableSettings
    users: int
    engine: VirtualEngine


class RealEngines:
    """Makes engines as `grid.simulated` does; SGLang starts once in a process, with the first."""

    def __init__(self) -> None:
        self._started: _Started | None = None

    def __call__(self, table: TableSettings, users: int, policy: Policy, promise_tok_s: float) -> VirtualEngine:
        """Return the engine, in a new run under `policy`.

        Raises:
            ConfigError: ranks don't have the policy, the table names no deployment, or another one runs already.
        """
        paced = policy.paced
        if paced is None:
            rule = "must be one that ranks have: off, blind, tiered or fixed weights"
            raise ConfigError([Problem("--policy", rule, policy.name, "Leave it out, or leave out --engine.")])
        engine = self._engine(table, users)
        times = StepTimeModel(reference_table(table.step_times))
        pacer = Pacer(times, live=table.live_shares, rules=paced.rules, clock=engine.clock)
        plan = _plan(Rung(table.rung) if policy.drafts else Rung.OFF, paced, promise_tok_s)
        engine.start(plan, pacer if policy.drafts else None)
        return engine

    def _engine(self, table: TableSettings, users: int) -> VirtualEngine:
        if self._started is None:
            self._started = _Started(table, users, _started(table, users))
        if (self._started.table, self._started.users) != (table, users):
            rule = "must be one with one number of users: SGLang starts once in a process"
            raise ConfigError([Problem("--table", rule, f"{users} users more", "Run them one after another.")])
        return self._started.engine


def _started(table: TableSettings, users: int) -> VirtualEngine:
    if table.deployment is None:
        rule = "must name the settings that the texts were recorded with"
        raise ConfigError([Problem("deployment", rule, "none", "Set it in the table, or leave out --engine.")])
    overrides = {
        "model.dtype": "float32",
        "replicas.device": "cpu",
        "replicas.tensor_parallel": 1,
        "replicas.expert_parallel": 1,
        "replicas.max_running_requests": users,
        "replicas.kv_tokens": table.kv_tokens,
        "replicas.chunked_prefill_tokens": table.chunk_tokens,
        # Of this method a rank drafts chains, too, with their survivals.
        "speculation.method": "tree",
        "speculation.tree_rows": table.nodes + 1,
    }
    with held_port() as port:
        engine = started(load_settings(table.deployment, overrides), Place(0, 1, port))
    return VirtualEngine(engine, StepTimeModel(reference_table(table.step_times)))


def _plan(rung: Rung, paced: Paced, promise_tok_s: float) -> EnginePlan:
    strict = TierTerms(promise_tok_s=promise_tok_s or None, weight=paced.strict_weight)
    return EnginePlan(rung=rung, tiers={LENIENT: TierTerms(), STRICT: strict})
