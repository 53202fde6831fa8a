"""Decides what requests had that broke off, or that a crash of the gateway left open, by what replicas say. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sparktier.configs.contracts.ended import EndedPage, EndedRequest
from sparktier.serving.gateway.usage_log.records import UsageRecord

# A request that was sent just before a crash may still be on its way into the engine, and clocks of machines differ.
GRACE_MS = 5_000


@dataclass
class _Awaited:
    """A request without a final record. `over`: the gateway will make none, so the engine's word is needed.

    `seen` are the parts of it that ended in the replica's process of `epoch`; `gap`: some may be forgotten there.
    """

    record: UsageRecord
    over: bool
    epoch: int | None = None
    gap: bool = False
    seen: list[EndedRequest] = field(default_factory=list)


@dataclass
class _Replica:
    epoch: int = 0
    cursor: int = 0


class Settlement:
    """The requests that have no final record yet; `left` are those that an earlier process has left."""

    def __init__(self, left: Iterable[UsageRecord] = ()) -> None:
        self._awaited = {record.engine_id: _Awaited(record, over=True) for record in left if not record.is_settled}
        self._replicas: dict[int, _Replica] = {}

    def note(self, record: UsageRecord) -> None:
        """Take a record of this process: a request begins, breaks off, or is complete."""
        if record.is_settled:
            self._awaited.pop(record.engine_id, None)
        elif (known := self._awaited.get(record.engine_id)) is not None:
            known.record, known.over = record, record.state == "ended"
        else:
            self._awaited[record.engine_id] = _Awaited(record, over=record.state == "ended")

    @property
    def awaited(self) -> frozenset[int]:
        """The numbers of the replicas whose word is needed."""
        return frozenset(each.record.replica for each in self._awaited.values() if each.over)

    def after(self, replica: int) -> int:
        """Return the seq after which `replica` is to tell its ended requests."""
        return self._replicas.setdefault(replica, _Replica()).cursor

    def told(self, replica: int, page: EndedPage, now_ms: int) -> tuple[list[UsageRecord], bool]:
        """Take a page that `replica` told after `after(replica)`.

        Returns:
            The final records that follow from it, and whether there is another page to ask for at once.
        """
        known = self._replicas.setdefault(replica, _Replica())
        if page.epoch != known.epoch:
            # The page was asked for by the seq of another process.
            asked_from_start = known.cursor == 0
            known.epoch, known.cursor = page.epoch, 0
            if not asked_from_start:
                return [], True
        if page.kept_from > known.cursor + 1:
            self._mark_gap(replica, page)
        for ended in page.ended:
            known.cursor = ended.seq
            awaited = self._awaited.get(ended.request_id) if ended.request_id is not None else None
            if awaited is not None:
                awaited.epoch = awaited.epoch or page.epoch
                awaited.seen.append(ended)
        if known.cursor < page.last:
            return [], True
        mine = [each for each in self._awaited.values() if each.over and each.record.replica == replica]
        settled = [record for each in mine if (record := _decided(each, page, now_ms)) is not None]
        for record in settled:
            self.note(record)
        return settled, False

    def _mark_gap(self, replica: int, page: EndedPage) -> None:
        for each in self._awaited.values():
            if each.record.replica == replica and each.record.started_at_ms < (page.kept_since_ms or 0) + GRACE_MS:
                each.gap = True

    def given_up(self, now_ms: int, *, patience_ms: int) -> list[UsageRecord]:
        """Return final records of requests that no replica has told of for `patience_ms`."""
        late = [each for each in self._awaited.values() if each.over and now_ms - each.record.at_ms > patience_ms]
        settled = [_broken_off(each, now_ms) for each in late]
        for record in settled:
            self.note(record)
        return settled


def _decided(awaited: _Awaited, page: EndedPage, now_ms: int) -> UsageRecord | None:
    """Return the final record of a request by the last page of its replica, or None while it may still run."""
    record = awaited.record
    if record.engine_id in page.in_flight:
        return None
    if awaited.seen and awaited.epoch == page.epoch and not (awaited.gap and record.users > 1):
        prompt, completion = tokens_of(awaited.seen)
        return record.now("complete", now_ms, prompt_tokens=prompt, completion_tokens=completion)
    # A replica starts for many seconds before it takes a request, so clocks of two machines may differ by as much.
    if page.epoch > record.started_at_ms or awaited.seen or awaited.gap:
        return _broken_off(awaited, now_ms)
    if now_ms - record.at_ms < GRACE_MS:
        return None
    return record.now("complete", now_ms, prompt_tokens=0, completion_tokens=0)


def _broken_off(awaited: _Awaited, now_ms: int) -> UsageRecord:
    """Return the final record of a request whose engine died: what was delivered."""
    return awaited.record.now("incomplete", now_ms)


def tokens_of(ended: Iterable[EndedRequest]) -> tuple[int, int]:
    """Return the tokens of one request's prompts and answers; a prompt counts once, whatever its choices."""
    prompts: dict[int, int] = {}
    completion = 0
    for one in ended:
        prompts[one.prompt] = max(one.prompt_tokens, prompts.get(one.prompt, 0))
        completion += one.completion_tokens
    return sum(prompts.values()), completion
