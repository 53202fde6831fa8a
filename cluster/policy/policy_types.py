"""What the depth policy is given and keeps: its configuration, what it received, and its memory of each replica.

All of it survives JSON, so a decision can be made again from its log.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from sparktier.cluster.feasibility import TierTarget
from sparktier.configs.contracts.decision import Depth
from sparktier.configs.contracts.message import (
    Count,
    Fraction,
    Millis,
    Part,
    Positive,
    ReplicaId,
    RungNumber,
    RunState,
)
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.settings import tiers
from sparktier.configs.settings.tiers import TierId

Accept = Mapping[TierId, Annotated[tuple[Fraction, ...], Field(strict=False)]]
"""By tier, the acceptance of each drafted position; empty where nothing is known."""
OFF, SHORT, CHAIN, TREE = 0, 1, 2, 3


class TierRule(Part):
    """One tier, as the operator has it."""

    name: str
    promise_tok_s: Positive | None = None
    weight: Positive = 1.0
    ttft_ms: Millis | None = None
    max_stall_ms: Millis | None = None
    cap_tokens: Count | None = None
    cap_users: Count | None = None
    share_frac: Fraction | None = None
    yields: bool = False

    @classmethod
    def of(cls, tier: tiers.TierSettings) -> "TierRule":
        """Return what the policy goes by of a tier of the settings."""
        return cls(**{name: getattr(tier, name) for name in cls.model_fields})

    def target(self, most_users: int) -> TierTarget:
        """Return what the tier is to get on a replica of `most_users`."""
        return TierTarget(
            promise_tok_s=self.promise_tok_s,
            weight=self.weight,
            ttft_ms=self.ttft_ms,
            max_stall_ms=self.max_stall_ms,
            cap_tokens=self.cap_tokens,
            most_users=tiers.most_users(self.cap_users, self.share_frac, most_users),
        )


class PolicyConfig(Part):
    """The operator's choices, the same for all replicas of a deployment.

    `drafted` says how many tokens in a row each rung drafts; `tree_nodes` how many nodes a tree has.
    `most_users` stands in where a replica doesn't say how many requests run at once.
    """

    tiers: Annotated[Mapping[TierId, TierRule], Field(min_length=1)]
    default_tier: TierId
    drafted: Mapping[int, Count]
    tree_nodes: Count = 0
    chunk_tokens: Count | None = None
    most_users: Annotated[int, Field(ge=1)] = 48
    hold_ms: Millis = 15_000
    margin_frac: Fraction = 0.05
    caution_frac: Fraction = 0.0
    stale_ms: Millis = 5_000
    skew_ms: Millis = 60_000
    ttl_ms: Annotated[int, Field(ge=1)] | None = 10_000
    probe_every_ms: Millis = 100_000

    @property
    def highest_rung(self) -> int:
        """Where the ladder ends."""
        return max(self.drafted, default=OFF)


class Received(Part):
    """Signals of a replica, and how long ago they came by the receiver's own clock.

    `asked` is what the operator or the supervisor wants of the replica, `held_rung` the rung that an operator holds it
    on, and `order` says who ordered what.
    """

    signals: Signals | None
    age_ms: Millis
    url: str
    asked: RunState = "serving"
    held_rung: RungNumber | None = None
    order: str | None = None


class ReplicaMemory(Part):
    """What the policy keeps of one replica from tick to tick. Times are of the controller's monotonic clock.

    `chain_accept` and `tree_accept` are what was accepted while such a rung ran. `considered_ms` is when rung and caps
    were last thought about, `raised_ms` when caps rose last; `probing` is whether it runs a probe out of rung 0.
    `planned` is what the last plan said of it.
    """

    rung: int
    rows: Count = 0
    caps: Mapping[TierId, Count] | None = None
    moved_ms: int
    raised_ms: int
    considered_ms: int
    seq: Count
    seq_ms: int
    probing: bool = False
    probed_ms: int
    chain_accept: Accept
    tree_accept: Accept
    planned: Depth | None = None


class PolicyState(Part):
    """All that the policy remembers: the plan's number, its replicas, and how many of them are packed since when."""

    epoch: Annotated[int, Field(ge=1)]
    version: Count = 0
    replicas: Mapping[str, ReplicaMemory] = {}
    packed: Count = 0
    packed_ms: int = 0


class ReplicaInputs(Part):
    """All that is decided about one replica from: it goes into the log with each decision.

    `wanted` are the users by tier that its box grows toward; None leaves rung and caps alone in this tick.
    """

    replica_id: ReplicaId
    now_ms: int
    at_ms: Millis
    received: Received
    memory: ReplicaMemory | None
    wanted: Mapping[TierId, Count] | None
