"""The engines of `sparktier bench tiers --engine`: one rank of a deployment that runs one policy after another."""

from collections.abc import Iterator

from sparktier.cluster.simulator.outcome import LENIENT, STRICT
from sparktier.cluster.simulator.policies import Paced, Policy, policy_of
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.loading.loader import load_settings
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers.settings import TableSettings, TiersSettings
from sparktier.serving.bench.tiers.stepped import started
from sparktier.serving.bench.tiers.virtual_engine import VirtualEngine
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.stepping import Place
from sparktier.serving.supervision.processes import held_port


class RealEngines:
    """Makes engines as `grid.simulated` does; SGLang starts once in a process, with the first."""

    def __init__(self, settings: TiersSettings) -> None:
        """Check that `settings` can run.

        Raises:
            ConfigError: ranks don't have a policy, or there isn't one table with one number of users and a deployment.
        """
        problems = [*_unknown_to_ranks(settings), *_not_one_engine(settings)]
        if problems:
            raise ConfigError(problems)
        self._engine: VirtualEngine | None = None

    def __call__(self, table: TableSettings, users: int, policy: Policy, promise_tok_s: float) -> VirtualEngine:
        """Return the engine, in a new run under `policy`."""
        assert policy.paced is not None, "checked at the start"
        engine = self._engine = self._engine or _started(table, users)
        times = StepTimeModel(reference_table(table.step_times))
        pacer = Pacer(times, live=table.live_shares, rules=policy.paced.rules, clock=engine.clock)
        plan = _plan(Rung(table.rung) if policy.drafts else Rung.OFF, policy.paced, promise_tok_s)
        engine.start(plan, pacer if policy.drafts else None)
        return engine


def _unknown_to_ranks(settings: TiersSettings) -> Iterator[Problem]:
    planner = settings.planner
    for name in dict.fromkeys(name for table in settings.tables for name in settings.policies_of(table)):
        if policy_of(name, planner.rules, strict_weight=planner.strict_weight).paced is None:
            rule = "with --engine, must be one that ranks have: off, blind, tiered or fixed weights"
            yield Problem("--policy", rule, name, "Name others with --policy, or leave out --engine.")


def _not_one_engine(settings: TiersSettings) -> Iterator[Problem]:
    sizes = [f"{name} with {users} users" for name, table in settings.tables.items() for users in table.users]
    if len(sizes) != 1:
        rule = "with --engine, must be one table with one number of users: SGLang starts once in a process"
        yield Problem("--table", rule, ", ".join(sizes), "Name one with --table.")
    for name, table in settings.tables.items():
        if table.deployment is None or table.recorded is None:
            rule = "with --engine, a table must name recorded text and the deployment that it is of"
            yield Problem(f"tables.{name}", rule, "none", "Name others with --table, or leave out --engine.")


def _started(table: TableSettings, users: int) -> VirtualEngine:
    assert table.deployment is not None, "checked at the start"
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
