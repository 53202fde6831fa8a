"""The gate in an event loop: requests come, wait for a place at a replica, and are refused where none comes."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from sparktier.cluster.admission.gate import Decision, Full, Gate
from sparktier.cluster.admission.queue import Waiting
from sparktier.cluster.admission.routing import Candidate, prefixes_of
from sparktier.serving.gateway.core.place import Place
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.tenants.allowance import Load
from sparktier.serving.gateway.tier_resolution import TierTable

RETRY_AFTER_S = 5
"""Where no wait can be predicted."""
# How often what waits is looked at without a message of room: replicas come and go.
_LOOK_S = 0.25


def not_ready() -> Refused:
    """Return the refusal of a request for which there is no replica at all."""
    message = "No replica is ready. Try again in a few seconds."
    return Refused(message, status=503, code="not_ready", retry_after_s=RETRY_AFTER_S)


class Admission:
    """Places at the replicas of `table` for requests of the tiers that `tiers` returns; `clock` is monotonic."""

    def __init__(
        self, table: ReplicaTable, tiers: Callable[[], TierTable], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table, self._tiers, self._clock = table, tiers, clock
        self._gate = Gate(lambda: tiers().terms, self._fleet, self._sent)
        self._places: dict[Waiting, Place] = {}
        self._timer: asyncio.TimerHandle | None = None

    def arrive(self, tier: int, tenant: str, load: Load, *, secret: str) -> Place:
        """Return the place of a new request, which may still have to wait for its replica.

        Raises:
            Refused: there is no room, and its tier does not wait for any, or not for so long.
        """
        now_s = self._clock()
        prefixes = prefixes_of(secret, load.beginning)
        request = Waiting(tier, tenant, load.users, load.tokens, now_s, prefixes=prefixes)
        place = self._places[request] = Place(self, request, load.prompt_tokens)
        try:
            self._require_possible(request)
            self._apply(self._gate.arrive(request, now_s))
            if (refusal := place.refusal) is not None:
                raise refusal
        except BaseException:
            place.close()
            raise
        if not place.is_granted:
            place.waits(self._gate.predicted_wait_s(request))
        return place

    def look(self) -> None:
        """Let through what there is room for now; call it when a replica has told its room."""
        now_s = self._clock()
        self._apply(self._gate.look(now_s))
        healthy = [replica.number for replica in self._table.serving if replica.progress.healthy(now_s)]
        for place in list(self._places.values()):
            place.leave_if_hung(now_s, healthy)

    def name(self, tier: int) -> str:
        """Return a tier's name."""
        return self._tiers().names.get(tier, str(tier))

    def elsewhere(self, request: Waiting) -> bool:
        """Whether another replica serves than those at which `request` has failed."""
        return any(replica.number not in request.avoid for replica in self._table.serving)

    def put_back(self, request: Waiting) -> None:
        """Have a request wait again that got no token where it was sent."""
        self._apply(self._gate.put_back(request, self._clock()))

    def first_token(self, request: Waiting) -> None:
        """Note that a request has its first token."""
        self._gate.first_token(request, self._clock())

    def leave(self, request: Waiting) -> None:
        """Forget a request, whether it waits or has ended."""
        if self._places.pop(request, None) is not None:
            self._gate.leave(request)
            self._gate.ended(request, self._clock())

    def watch(self) -> None:
        """Look again soon while a request waits for room or for its first token."""
        if self._timer is not None or not any(place.awaits_something for place in self._places.values()):
            return
        now_s = self._clock()
        after_s = min(_LOOK_S, max(0.0, self._gate.next_deadline_s - now_s))
        self._timer = asyncio.get_running_loop().call_later(after_s, self._tick)

    @property
    def now_s(self) -> float:
        """The time by its clock."""
        return self._clock()

    def _require_possible(self, request: Waiting) -> None:
        """Refuse more users than any replica would take even without any, rather than have them wait in vain."""
        fleet = self._fleet(request.tier)
        if not fleet:
            raise not_ready()
        caps = [cap for _, cap in fleet if cap is not None]
        terms = self._tiers().terms[request.tier]
        if terms.on_full == "queue" and not terms.yields and len(caps) == len(fleet) and 0 < max(caps) < request.users:
            message = (
                f"n times the number of prompts must be at most {max(caps)} now for the tier {self.name(request.tier)} "
                f"(found {request.users}). Ask less."
            )
            raise Refused(message, param="n", code="too_many_users")

    def _fleet(self, tier: int) -> Sequence[tuple[Candidate, int | None]]:
        now_s = self._clock()
        return [
            (
                Candidate(
                    replica.number, replica.room.free(tier, now_s), replica.users, replica.progress.healthy(now_s)
                ),
                replica.room.caps.get(tier),
            )
            for replica in self._table.serving
        ]

    def _sent(self, request: Waiting, number: int) -> None:
        replica = next(replica for replica in self._table.replicas if replica.number == number)
        self._places[request].granted(replica)

    def _apply(self, decided: Sequence[Decision]) -> None:
        for each in decided:
            if isinstance(each, Full):
                self._places[each.request].refuse(self._full(each))
        self.watch()

    def _full(self, full: Full) -> Refused:
        if not self._table.serving:
            return not_ready()
        retry_s = RETRY_AFTER_S if full.wait_s is None else max(1, math.ceil(full.wait_s))
        name = self.name(full.request.tier)
        message = f"The tier {name} has no room for this request now. Send it again in {retry_s} s."
        return Refused(message, status=429, code="no_room", retry_after_s=retry_s, tier=name)

    def _tick(self) -> None:
        self._timer = None
        self.look()
