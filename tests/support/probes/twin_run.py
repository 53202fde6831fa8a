"""Runs the real engine in virtual time, and the simulated one on the text that the real one met: step by step twins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.simulator.answers import Answer, TokenIds
from sparktier.cluster.simulator.policies import Policy, policy_of
from sparktier.cluster.simulator.sim_engine import EngineLimits, SimEngine, SimRequest, SimStep
from sparktier.cluster.simulator.users import SteppingEngine, serve
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import PaceRules
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers.virtual_engine import VirtualEngine
from sparktier.serving.engine.speculation.edge_acceptance import EdgeTable
from sparktier.serving.engine.speculation.pacing import Pace, Pacer
from sparktier.serving.engine.stepping import SteppedEngine
from support.generation import random_prompts

TIMES = StepTimeModel(reference_table("avx2"))
USERS, TURNS, CHUNK_TOKENS = 6, 2, 64
_PROMISE_TOK_S = 5.0
_RULES = PaceRules()


@dataclass(frozen=True)
class TwinRun:
    """The steps of one run on the real engine, and on the simulated one."""

    name: str
    real: Sequence[SimStep]
    simulated: Sequence[SimStep]


class WatchedPacer(Pacer):
    """The product's pacer, which also keeps the survivals of every step's drafts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drafted_survival: list[Floats] = []

    def share(self, pace: Pace, survival: Floats, *, drawn: bool) -> Ints:
        """Share out a step's rows, and keep what its drafts promise."""
        self.drafted_survival.append(survival)
        return super().share(pace, survival, drawn=drawn)


def twin_runs(engine: SteppedEngine, *, tree_rows: int, block_tokens: int) -> list[TwinRun]:
    """Return runs of chains and trees, tiered and blind, with shares by live survivals or by those of the step before.

    The engine prefills in chunks of CHUNK_TOKENS.
    """
    flatten(engine)
    virtual = VirtualEngine(engine, TIMES)
    nodes = {Rung.CHAIN: block_tokens, Rung.TREE: tree_rows - 1}
    kinds = (("tiered", Rung.CHAIN, True), ("blind", Rung.CHAIN, False), ("tiered", Rung.TREE, True))
    return [
        _twins(
            virtual,
            policy_of(name, _RULES, strict_weight=1.0),
            EngineLimits(USERS, 8192, CHUNK_TOKENS, nodes[rung], int(rung), live),
        )
        for name, rung, live in kinds
    ]


def flatten(engine: SteppedEngine) -> None:
    """Have the oracle's drafts say that they are less likely than it knows them to be, so that there is a choice."""
    engine.worker.decode_step.drafter._edges = EdgeTable([(0.2, 0.0)] * 3, device=torch.device("cpu"))


def _twins(virtual: VirtualEngine, policy: Policy, limits: EngineLimits) -> TwinRun:
    gain = _RULES.gain if policy.heeds_promises else 0.0
    pacer = WatchedPacer(TIMES, live=limits.live_shares, rules=replace(_RULES, gain=gain), clock=virtual.clock)
    tiers = {0: TierTerms(), 1: TierTerms(promise_tok_s=_PROMISE_TOK_S)}
    virtual.start(EnginePlan(rung=Rung(limits.rung), tiers=tiers), pacer)
    real = _steps(virtual, _asked)
    met = _met(real, pacer.drafted_survival, limits)

    def asked_again(user: int, turn: int) -> SimRequest:
        asked = _asked(user, turn)
        return replace(asked, answer=met.get(asked.key, asked.answer))

    engine = SimEngine(policy, times=TIMES, true_times=TIMES, limits=limits)
    name = f"{policy.name}, rung {limits.rung}, live {limits.live_shares}"
    return TwinRun(name, real, _steps(engine, asked_again))


def _asked(user: int, turn: int) -> SimRequest:
    strict = user % 2
    (prompt,) = random_prompts(1, seed=100 * user + turn, longest=90)
    tokens = 18 + 5 * user + 3 * turn
    answer = Answer(
        np.zeros((tokens - 1, 1)), np.zeros((tokens - 1, 2), dtype=np.int64), "random", ids=TokenIds(tuple(prompt), ())
    )
    return SimRequest((user, turn), strict, _PROMISE_TOK_S * strict, len(prompt), answer)


def _steps(engine: SteppingEngine, request: Callable[[int, int], SimRequest]) -> list[SimStep]:
    steps: list[SimStep] = []
    serve(engine, request, users=USERS, turns=TURNS, on_step=lambda _now_ms, step: steps.append(step))
    return steps


def _met(steps: Sequence[SimStep], drafted: Sequence[Floats], limits: EngineLimits) -> Mapping[tuple[int, ...], Answer]:
    """The answers as far as the real engine drafted at their places: elsewhere no draft is accepted."""
    delivered: dict[tuple[int, ...], int] = {}
    answers: dict[tuple[int, ...], Answer] = {}
    decodes = iter(drafted)
    for step in steps:
        survival = next(decodes) if len(step.rows) else None
        for place, (key, tokens) in enumerate(zip(step.keys, step.tokens.tolist(), strict=True)):
            if survival is None:
                places = _asked(*key).answer.tokens - 1
                answers[key] = Answer(
                    np.zeros((places, limits.nodes)),
                    np.zeros((places, limits.nodes + 1), dtype=np.int64),
                    "met",
                    limits.rung != Rung.TREE,
                    _asked(*key).answer.ids,
                )
                delivered[key] = tokens
                continue
            at = delivered[key] - 1
            answers[key].survival[at] = survival[place]
            # What fewer rows would have given only a chain tells; the twin asks for as many.
            answers[key].accepted[at] = np.minimum(np.arange(limits.nodes + 1), tokens - 1)
            delivered[key] += tokens
    return answers
