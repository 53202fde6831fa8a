"""The controller's loop: read signals, decide, send plans, read back what is in force, and write down why.

Clocks, lease, client and log are passed in, so it runs as well on a simulated cluster as on a real one.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sparktier.cluster.depth_policy import Outcome, decide
from sparktier.cluster.policy.policy_types import PolicyConfig, PolicyState, Received
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.decision import Decision
from sparktier.configs.contracts.message import RunState
from sparktier.configs.contracts.plan import Plan, ReplicaPlan
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.errors import ContractError, ReplicaError

Steered = Literal[
    "off", "steered", "sent", "unreachable", "doubtful", "refused", "fenced", "differs", "latched", "expired"
]
"""How a replica takes its plan, by what was read back of it."""
# Plans are sent again after this part of their time, and to those that refused one after so many such parts.
_REFRESH_FRAC, _REFUSED_REFRESHES = 0.33, 10
# A plan that only renews the one before is given so many ticks until it has to be read back.
_READ_BACK_TICKS = 5
# Part of a tick that answers are waited for; later ones count in the next tick.
_WAIT_FRAC = 0.5


@dataclass(frozen=True)
class Place:
    """Where a replica is, and what its supervisor or operator wants of it.

    `held_rung` is the rung that an operator holds it on, and `order` says who ordered what.
    """

    url: str
    asked: RunState = "serving"
    held_rung: int | None = None
    order: str | None = None


class ReplicaAdmin(Protocol):
    """Asks replicas on their own ports, with the admin key."""

    async def signals(self, url: str) -> Signals:
        """Return the signals of the replica at `url`. Raises ReplicaError or ContractError."""

    async def send(self, url: str, plan: Plan) -> str | None:
        """Have the replica take its part of `plan`; return why it refused, or None. Raises ReplicaError."""


class Lease(Protocol):
    """The right to decide, which one of several controllers holds."""

    async def hold(self, *, above: int) -> int | None:
        """Take or renew the lease; return its epoch, higher than `above` when it is taken anew, or None."""

    async def give_up(self) -> None:
        """Let another controller have it."""


class Record(Protocol):
    """Where decisions and changes of state are written down."""

    def start(self, epoch: int, config: PolicyConfig, models: Mapping[str, StepTimeModel]) -> None:
        """A controller begins to decide."""

    def decision(self, decision: Decision, plan: Plan) -> None:
        """What a plan says of a replica changed."""

    def state(self, at_ms: int, name: str, state: str, found: str) -> None:
        """The lease or a replica, by `name`, is in another state; `found` is what shows it."""


@dataclass(frozen=True)
class Clocks:
    """Monotonic time and the time of day, in milliseconds."""

    now_ms: Callable[[], int]
    at_ms: Callable[[], int]


@dataclass
class _Contact:
    """What passes between the controller and one replica."""

    url: str
    reading: "asyncio.Task[Signals] | None" = None
    sending: "asyncio.Task[str | None] | None" = None
    signals: Signals | None = None
    heard_ms: int = 0
    trouble: str | None = None
    sent: ReplicaPlan | None = None
    sent_plan: Plan | None = None
    sent_ms: int = 0
    taken: Plan | None = None
    taken_ms: int = 0
    refused: str | None = None
    state: Steered | None = None


@dataclass
class Controller:
    """Steers the replicas that `places` tells, as long as it holds `lease`.

    `setup` returns the operator's choices and each replica's step times; it is asked at every tick, so it may change.
    `plan` is the last one that was sent, for gateways; `epoch` is None in standby.
    """

    admin: ReplicaAdmin
    lease: Lease
    clocks: Clocks
    places: Callable[[], Mapping[str, Place]]
    setup: Callable[[], tuple[PolicyConfig, Mapping[str, StepTimeModel]]]
    record: Record
    tick_ms: int = 1000
    plan: Plan | None = None
    epoch: int | None = None
    evaluations: int = 0
    took_ms: float = 0.0
    _state: PolicyState | None = None
    _contacts: dict[str, _Contact] = field(default_factory=dict)
    _lease_state: tuple[str, str] | None = None
    _recorded: PolicyConfig | None = None

    @property
    def states(self) -> dict[str, str]:
        """How each replica takes its plan, by name."""
        return {name: contact.state or "unreachable" for name, contact in sorted(self._contacts.items())}

    @property
    def standing(self) -> str:
        """Whether this controller is `leading`, in `standby`, or `fenced` by a higher epoch."""
        return self._lease_state[0] if self._lease_state else "standby"

    async def run(self) -> None:
        """Decide once a tick until cancelled; then let another have the lease."""
        try:
            while True:
                started_ms = self.clocks.now_ms()
                await self.tick()
                self.took_ms = float(self.clocks.now_ms() - started_ms)
                await asyncio.sleep(max(0.0, self.tick_ms - self.took_ms) / 1000.0)
        finally:
            await self._stop()

    async def tick(self) -> None:
        """Read, decide, send, read back and write down, once."""
        await self._read()
        if not await self._may_decide():
            return
        config, models = self.setup()
        assert self._state is not None
        if self._recorded != config:
            self.record.start(self._state.epoch, config, models)
            self._recorded = config
        now_ms, at_ms = self.clocks.now_ms(), self.clocks.at_ms()
        outcome = decide(self._received(now_ms), config, models, self._state, now_ms=now_ms, at_ms=at_ms)
        self._state, self.evaluations = outcome.state, outcome.evaluations
        for decision in outcome.decisions:
            self.record.decision(decision, outcome.plan)
        self._send(outcome, config)
        await self._wait([contact.sending for contact in self._contacts.values()])
        places = self.places()
        for name, contact in sorted(self._contacts.items()):
            is_off = name not in places or places[name].asked == "off"
            self._read_back(name, contact, outcome.doubts.get(name), is_off=is_off)

    async def _may_decide(self) -> bool:
        """Whether this controller holds the lease, and no other steers by a higher epoch."""
        seen = [contact.signals for contact in self._contacts.values() if contact.signals is not None]
        held = await self.lease.hold(above=max((signals.epoch for signals in seen), default=0))
        if held != self.epoch or held is None:
            self.epoch, self.plan, self._recorded = held, None, None
            self._state = None if held is None else PolicyState(epoch=max(1, held))
            for contact in self._contacts.values():
                contact.sent = contact.sent_plan = contact.taken = contact.refused = None
        if held is None:
            return self._said("standby", "another controller holds the lease, or it can't be reached")
        others = [signals for signals in seen if signals.epoch > held]
        if any(not signals.expired for signals in others):
            return self._said("fenced", f"epoch {max(each.epoch for each in others)} is in force, above {held}")
        if others:
            # Their sender is gone: the next lease is taken above them.
            await self.lease.give_up()
            return self._said("fenced", f"plans of epoch {max(each.epoch for each in others)} are over")
        self._said("leading", f"epoch {held}")
        return True

    def _said(self, state: str, found: str) -> bool:
        """Write down a change of the lease's state; False."""
        if (state, found) != self._lease_state:
            self._lease_state = (state, found)
            self.record.state(self.clocks.at_ms(), "lease", state, found)
        return False

    async def _read(self) -> None:
        """Ask every replica that is not being asked for its signals; take the answers that come in time."""
        places = self.places()
        for name in [name for name in self._contacts if name not in places]:
            _cancel(self._contacts.pop(name))
        for name, place in places.items():
            contact = self._contacts.setdefault(name, _Contact(place.url))
            if contact.url != place.url:
                _cancel(contact)
                contact = self._contacts[name] = _Contact(place.url)
            if contact.reading is None and place.asked != "off":
                contact.reading = asyncio.create_task(self.admin.signals(place.url))
        await self._wait([contact.reading for contact in self._contacts.values()])
        for name, contact in self._contacts.items():
            if contact.reading is not None and contact.reading.done():
                self._heard(name, contact, contact.reading)
                contact.reading = None

    def _heard(self, name: str, contact: _Contact, answer: "asyncio.Task[Signals]") -> None:
        try:
            signals = answer.result()
        except (ReplicaError, ContractError) as error:
            contact.trouble = str(error)
            return
        if signals.replica_id != name:
            contact.trouble = f"it says that it is {signals.replica_id}"
            return
        contact.signals, contact.heard_ms, contact.trouble = signals, self.clocks.now_ms(), None
        if contact.taken is not None and signals.epoch < contact.taken.epoch:
            # It started anew, and knows of no plan.
            contact.taken = contact.sent = None

    def _received(self, now_ms: int) -> dict[str, Received]:
        places = self.places()
        return {
            name: Received(
                signals=None if places[name].asked == "off" else contact.signals,
                age_ms=max(0, now_ms - contact.heard_ms),
                url=contact.url,
                asked=places[name].asked,
                held_rung=places[name].held_rung,
                order=places[name].order,
            )
            for name, contact in self._contacts.items()
            if name in places
        }

    def _send(self, outcome: Outcome, config: PolicyConfig) -> None:
        """Send each replica its part where that is new, was lost, or has to be told again before its time is over."""
        now_ms = self.clocks.now_ms()
        changed = self.plan is None or _names(self.plan) != _names(outcome.plan)
        for part in outcome.plan.replicas:
            contact = self._contacts.get(part.replica_id)
            if contact is None:
                continue
            tiers_changed = contact.sent_plan is not None and contact.sent_plan.tiers != outcome.plan.tiers
            if part == contact.sent and not tiers_changed and not self._is_due(contact, config, now_ms):
                continue
            changed = True
            if part.state == "off" or contact.sending is not None:
                continue
            contact.sent, contact.sent_plan, contact.sent_ms = part, outcome.plan, now_ms
            own = outcome.plan.model_copy(update={"replicas": (part,)})
            contact.sending = asyncio.create_task(self.admin.send(contact.url, own))
        if changed:
            self.plan = outcome.plan

    def _is_due(self, contact: _Contact, config: PolicyConfig, now_ms: int) -> bool:
        if config.ttl_ms is None:
            return False
        refreshes = 1 if contact.refused is None else _REFUSED_REFRESHES
        return now_ms - contact.sent_ms >= _REFRESH_FRAC * config.ttl_ms * refreshes

    def _read_back(self, name: str, contact: _Contact, doubt: str | None, *, is_off: bool) -> None:
        """Name the state of a replica, by what it says that it applies."""
        if contact.sending is not None and contact.sending.done():
            try:
                contact.refused = contact.sending.result()
                contact.taken = contact.taken if contact.refused else contact.sent_plan
            except (ReplicaError, ContractError) as error:
                contact.trouble, contact.sent = str(error), None
            contact.sending = None
            contact.taken_ms = self.clocks.now_ms()
        state, found = self._named(contact, doubt)
        if is_off:
            state, found = "off", "it has no ready engine, or is to have none"
        if state != contact.state:
            contact.state = state
            self.record.state(self.clocks.at_ms(), name, state, found)

    def _named(self, contact: _Contact, doubt: str | None) -> tuple[Steered, str]:
        signals, taken = contact.signals, contact.taken
        if contact.trouble is not None or signals is None:
            return "unreachable", contact.trouble or "no answer yet"
        if doubt is not None:
            return "doubtful", f"its signals are not believed: {doubt}"
        if contact.refused is not None:
            fenced = signals.epoch > (self.epoch or 0)
            return ("fenced" if fenced else "refused"), contact.refused
        if signals.latched:
            return "latched", "it has latched rung 0"
        is_behind = taken is None or (signals.epoch, signals.plan_version) < (taken.epoch, taken.version)
        since_ms = self.clocks.now_ms() - contact.taken_ms
        if is_behind and contact.state == "steered" and since_ms <= _READ_BACK_TICKS * self.tick_ms:
            return "steered", "its plan was renewed, which is to be read back"
        if taken is None or is_behind:
            return "sent", f"plan {None if taken is None else taken.version} is to be read back"
        if signals.expired:
            return "expired", f"the time of plan {signals.plan_version} is over"
        wrong = differences(signals, taken)
        return ("differs", "; ".join(wrong)) if wrong else ("steered", f"plan {signals.plan_version} is in force")

    async def _wait(self, tasks: "Sequence[asyncio.Task[Any] | None]") -> None:
        pending = [task for task in tasks if task is not None]
        if pending:
            await asyncio.wait(pending, timeout=_WAIT_FRAC * self.tick_ms / 1000.0)

    async def _stop(self) -> None:
        for contact in self._contacts.values():
            _cancel(contact)
        await self.lease.give_up()


def differences(signals: Signals, plan: Plan) -> list[str]:
    """Return what a replica says that it applies and `plan`, of the same number, doesn't say."""
    part = next((each for each in plan.replicas if each.replica_id == signals.replica_id), None)
    if part is None or (signals.epoch, signals.plan_version) != (plan.epoch, plan.version):
        return []
    wrong = []
    for name, ours, theirs in (("rung", part.rung, signals.rung), ("rows", part.rows, signals.rows)):
        if ours != theirs:
            wrong.append(f"{name} must be {ours} (found {theirs})")
    caps = {tier: bounds.cap_users for tier, bounds in part.tiers.items() if bounds.cap_users is not None}
    if signals.caps is not None and signals.caps != caps:
        wrong.append(f"most users by tier must be {caps} (found {signals.caps})")
    if signals.state is not None and signals.state != part.state:
        wrong.append(f"state must be {part.state} (found {signals.state})")
    for tier, promise in plan.tiers.items():
        found = signals.shares.get(tier)
        cap = part.tiers[tier].cap_tokens if tier in part.tiers else None
        wanted = (promise.promise_tok_s, promise.weight, cap)
        has = None if found is None else (found.promise_tok_s, found.weight, found.cap_tokens)
        if has != wanted:
            wrong.append(f"tier {tier} must have promise, weight and cap {wanted} (found {has})")
    return wrong


def _names(plan: Plan) -> list[str]:
    return [part.replica_id for part in plan.replicas]


def _cancel(contact: _Contact) -> None:
    for task in (contact.reading, contact.sending):
        if task is not None:
            task.cancel()
