"""The controller's loop on replicas that never ran: each trouble ends in a state that is read back and written down."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from sparktier.cluster.controller import Clocks, Controller, Place
from sparktier.cluster.policy.policy_types import PolicyConfig
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.decision import Decision
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.signals import Signals, TierInForce
from sparktier.configs.errors import ReplicaLost
from sparktier.configs.plan_keys import EnginePlan, engine_plan, keys_of, plan_of, refusals
from support.steering.signal_maker import policy_config, signals

DAY_MS = 1_795_824_000_000
TICK_MS = 40
NAME, URL = "replica-0", "http://10.0.0.1:1"


@dataclass
class FakeTime:
    now_ms: int = 50_000
    set_ms: int = 0

    @property
    def clocks(self) -> Clocks:
        return Clocks(lambda: self.now_ms, lambda: DAY_MS + self.now_ms + self.set_ms)


@dataclass
class FakeReplica:
    """An engine's admin port: takes plans as ranks do, and tells what it applies, with a lie or a fault on demand."""

    time: FakeTime
    plan: EnginePlan = field(default_factory=EnginePlan)
    seq: int = 0
    lost: bool = False
    frozen: bool = False
    lies: dict[str, Any] = field(default_factory=dict)
    expired: bool = False
    taken: int = 0
    last: Signals | None = None

    def tell(self) -> Signals:
        if self.frozen and self.last is not None:
            return self.last
        self.seq += 1
        shares = {tier: TierInForce(**vars(terms)) for tier, terms in self.plan.tiers.items()}
        fields: dict[str, Any] = {
            "epoch": self.plan.epoch,
            "plan_version": self.plan.version,
            "rung": 1 if self.expired else int(self.plan.rung),
            "rows": self.plan.rows,
            "shares": shares,
            "expired": self.expired,
        }
        at_ms = self.time.clocks.at_ms()
        self.last = signals(NAME, seq=self.seq, at_ms=at_ms, running={0: 1}, **(fields | self.lies))
        return self.last

    def take(self, plan: Plan) -> str | None:
        keys = keys_of(engine_plan(plan, NAME))
        if wrong := refusals(keys, before=self.plan):
            return "; ".join(wrong)
        self.plan, self.expired, self.taken = plan_of(keys), False, self.taken + 1
        return None


@dataclass
class FakeAdmin:
    replicas: Mapping[str, FakeReplica]

    async def signals(self, url: str) -> Signals:
        return self._reached(url).tell()

    async def send(self, url: str, plan: Plan) -> str | None:
        return self._reached(url).take(plan)

    def _reached(self, url: str) -> FakeReplica:
        if self.replicas[url].lost:
            raise ReplicaLost("no answer")
        return self.replicas[url]


@dataclass
class FakeLease:
    """A store of one lease; `reached` is whether it answers."""

    epoch: int = 1
    holder: object = None
    reached: bool = True


@dataclass
class FakeHold:
    store: FakeLease
    held: int | None = None

    async def hold(self, *, above: int) -> int | None:
        if not self.store.reached or self.store.holder not in (None, self):
            self.held = None
            return None
        if self.held is None:
            self.store.epoch = self.held = max(self.store.epoch, above) + 1
        self.store.holder = self
        return self.held

    async def give_up(self) -> None:
        if self.store.holder is self:
            self.store.holder = None
        self.held = None


@dataclass
class Notes:
    states: list[tuple[str, str, str]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def start(self, epoch: int, config: PolicyConfig, models: Mapping[str, StepTimeModel]) -> None:
        """Note nothing."""

    def decision(self, decision: Decision, plan: Plan) -> None:
        self.decisions.append(decision)

    def state(self, at_ms: int, name: str, state: str, found: str) -> None:
        self.states.append((name, state, found))

    def last(self, name: str) -> str:
        return [state for named, state, _ in self.states if named == name][-1]


@dataclass
class World:
    """One replica, and controllers that steer it."""

    time: FakeTime = field(default_factory=FakeTime)
    places: dict[str, Place] = field(default_factory=lambda: {NAME: Place(URL)})

    def __post_init__(self) -> None:
        self.replica = FakeReplica(self.time)
        self.admin = FakeAdmin({URL: self.replica})

    def controller(self, store: FakeLease | None = None, **config: Any) -> tuple[Controller, Notes]:
        notes = Notes()
        found = policy_config(drafted={0: 0, 1: 2, 2: 5}, **config)
        lease = FakeHold(store or FakeLease())
        controller = Controller(
            self.admin, lease, self.time.clocks, lambda: self.places, lambda: (found, {}), notes, tick_ms=TICK_MS
        )
        return controller, notes

    async def run(self, *controllers: Controller, ticks: int = 3, every_ms: int = 1000) -> None:
        for _ in range(ticks):
            for each in controllers:
                await each.tick()
            await asyncio.sleep(0)
            self.time.now_ms += every_ms


@pytest.fixture
def world() -> World:
    return World()


async def test_a_plan_is_sent_once_and_read_back(world: World) -> None:
    controller, notes = world.controller(ttl_ms=None)
    await world.run(controller, ticks=5)
    assert controller.states == {NAME: "steered"}
    assert world.replica.taken == 1
    assert (world.replica.plan.epoch, int(world.replica.plan.rung)) == (2, 2)
    assert [state for _, state, _ in notes.states] == ["leading", "sent", "steered"]
    assert len(notes.decisions) == 1


async def test_a_plan_is_sent_again_before_its_time_is_over(world: World) -> None:
    controller, _ = world.controller(ttl_ms=10_000)
    await world.run(controller, ticks=30)
    assert 7 <= world.replica.taken <= 10
    assert controller.states == {NAME: "steered"}


async def test_a_controller_that_dies_and_returns_changes_nothing(world: World) -> None:
    store = FakeLease()
    first, _ = world.controller(store)
    await world.run(first, ticks=4)
    before = world.replica.plan
    store.holder = None  # the system frees what a dead process held
    second, _ = world.controller(store)
    await world.run(second, ticks=4)
    after = world.replica.plan
    assert (after.rung, after.rows, after.tiers) == (before.rung, before.rows, before.tiers)
    assert (before.epoch, after.epoch) == (2, 3)
    assert second.states == {NAME: "steered"}


async def test_of_two_with_one_lease_one_waits(world: World) -> None:
    store = FakeLease()
    first, _ = world.controller(store)
    second, notes = world.controller(store)
    await world.run(first, second, ticks=4)
    assert (first.standing, second.standing) == ("leading", "standby")
    assert second.plan is None
    assert notes.last("lease") == "standby"
    assert world.replica.plan.epoch == 2


async def test_of_two_without_a_common_lease_the_older_epoch_is_fenced(world: World) -> None:
    """The store is lost, so both hold a lease of their own; the one that starts later has the higher epoch."""
    first, notes = world.controller(FakeLease())
    await world.run(first, ticks=3)
    second, _ = world.controller(FakeLease())
    await world.run(first, second, ticks=5)
    assert (first.standing, second.standing) == ("fenced", "leading")
    assert notes.last("lease") == "fenced"
    assert world.replica.plan.epoch == 3
    assert first.plan is not None
    # The second goes, its plan's time ends, and the first takes over above it.
    world.replica.expired = True
    await world.run(first, ticks=4)
    assert first.standing == "leading"
    assert world.replica.plan.epoch == 4


async def test_without_the_lease_store_nothing_is_sent(world: World) -> None:
    store = FakeLease()
    controller, _ = world.controller(store)
    await world.run(controller, ticks=3)
    store.reached, taken = False, world.replica.taken
    await world.run(controller, ticks=20)
    assert (controller.standing, world.replica.taken) == ("standby", taken)


async def test_a_replica_out_of_reach_is_named_and_steered_again(world: World) -> None:
    controller, notes = world.controller()
    await world.run(controller, ticks=3)
    world.replica.lost = True
    await world.run(controller, ticks=3)
    assert controller.states == {NAME: "unreachable"}
    world.replica.lost = False
    await world.run(controller, ticks=6)
    assert controller.states == {NAME: "steered"}
    assert ("unreachable", "no answer") in [(state, found) for _, state, found in notes.states]


async def test_an_engine_that_lies_in_its_read_back_is_named(world: World) -> None:
    controller, notes = world.controller()
    await world.run(controller, ticks=3)
    world.replica.lies = {"rung": 0}
    await world.run(controller, ticks=3)
    assert controller.states == {NAME: "differs"}
    assert "rung must be 2 (found 0)" in notes.states[-1][2]
    world.replica.lies = {"shares": {}}
    await world.run(controller, ticks=8)
    assert controller.states == {NAME: "differs"}
    world.replica.lies = {}
    await world.run(controller, ticks=3)
    assert controller.states == {NAME: "steered"}


async def test_a_wall_clock_that_is_set_does_no_harm(world: World) -> None:
    controller, _ = world.controller()
    await world.run(controller, ticks=3)
    for moved_ms in (3_600_000, -7_200_000, 0):
        world.time.set_ms = moved_ms
        await world.run(controller, ticks=10)
        assert controller.states == {NAME: "steered"}
        assert int(world.replica.plan.rung) == 2


async def test_a_replica_that_lost_its_plan_gets_it_again_at_once(world: World) -> None:
    controller, _ = world.controller(ttl_ms=None)
    await world.run(controller, ticks=3)
    world.replica.plan = EnginePlan()
    await world.run(controller, ticks=3)
    assert world.replica.plan.epoch == 2
    assert controller.states == {NAME: "steered"}


async def test_frozen_signals_are_not_believed(world: World) -> None:
    controller, notes = world.controller()
    await world.run(controller, ticks=3)
    world.replica.frozen = True
    await world.run(controller, ticks=10)
    assert controller.states == {NAME: "doubtful"}
    assert "reading" in notes.states[-1][2]
    assert world.replica.plan.rung == 2


async def test_one_that_refuses_is_asked_seldom(world: World) -> None:
    controller, notes = world.controller()
    world.replica.plan = EnginePlan(epoch=2, version=10**9)
    await world.run(controller, ticks=1)
    world.replica.take = lambda plan: "a fixed depth"  # type: ignore[method-assign]
    world.replica.plan = EnginePlan()
    await world.run(controller, ticks=10)
    assert controller.states == {NAME: "refused"}
    assert notes.states[-1][2] == "a fixed depth"


async def test_what_says_it_is_another_replica_is_not_heard(world: World) -> None:
    controller, _ = world.controller()
    world.replica.lies = {"replica_id": "replica-9"}
    await world.run(controller, ticks=3)
    assert controller.states == {NAME: "unreachable"}
    assert controller.plan is not None
    assert not controller.plan.replicas


async def test_a_replica_that_is_off_is_in_the_plan_and_asked_nothing(world: World) -> None:
    controller, _ = world.controller()
    await world.run(controller, ticks=3)
    world.places[NAME] = Place(URL, "off")
    world.replica.lost = True
    await world.run(controller, ticks=2)
    assert controller.plan is not None
    assert [part.state for part in controller.plan.replicas] == ["off"]
    assert controller.states == {NAME: "off"}


async def test_a_renewed_plan_that_is_read_back_late_is_no_change(world: World) -> None:
    controller, notes = world.controller()
    await world.run(controller, ticks=3)
    before = world.replica.tell()
    noted = len(notes.states)
    world.replica.lies = {"epoch": before.epoch, "plan_version": before.plan_version}
    await world.run(controller, ticks=3, every_ms=TICK_MS)
    world.time.now_ms += 4000
    await world.run(controller, ticks=4, every_ms=TICK_MS)
    assert controller.states == {NAME: "steered"}
    assert len(notes.states) == noted
    await world.run(controller, ticks=12, every_ms=TICK_MS)
    assert controller.states == {NAME: "sent"}
