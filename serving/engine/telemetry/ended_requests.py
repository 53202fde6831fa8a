"""The last requests that ended on this replica, as the engine counted them: `GET /sparktier/ended`.

SGLang's tokenizer manager hears of every end, of an answer, an error or an abort, in the replica's HTTP process.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, NamedTuple

from sparktier.configs.contracts.ended import REQUEST_ID, EndedPage, EndedRequest
from sparktier.configs.plan_keys import MAX_TIERS, REQUEST_PARAM
from sparktier.serving.engine.rank_options import asked_tier

KEPT = 10_000
PAGE = 1_000
_PROMPT = "sparktier_prompt"


class Counts(NamedTuple):
    """What the ranks said of one request at its end; `times` is SGLang's record of its stages there."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish_reason: str
    times: Any = None


class EndedRequests:
    """The list; `clock` is the one of SGLang's times, `day_s` the time of day."""

    def __init__(
        self,
        *,
        kept: int = KEPT,
        clock: Callable[[], float] = time.perf_counter,
        day_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._day_s = day_s
        self.epoch = round(day_s() * 1000)
        self._last = 0
        self._ended: deque[EndedRequest] = deque(maxlen=kept)

    def add(self, state: Any, counts: Counts) -> None:
        """Note the end of the request that SGLang's `state` is of."""
        self._last += 1
        now_s = self._clock()
        arrived_s = state.time_stats.created_time or now_s
        params = _custom_params(state.obj)
        tier = asked_tier(params)
        self._ended.append(
            EndedRequest(
                seq=self._last,
                request_id=_request_id(params),
                prompt=getattr(state.obj, _PROMPT, 0),
                tier=tier if tier in range(MAX_TIERS) else None,
                prompt_tokens=counts.prompt_tokens,
                completion_tokens=counts.completion_tokens,
                cached_tokens=counts.cached_tokens,
                finish_reason=counts.finish_reason,
                arrived_at_ms=round((self._day_s() - (now_s - arrived_s)) * 1000),
                ended_at_ms=round(self._day_s() * 1000),
                **_stages_ms(arrived_s, now_s, counts),
            )
        )

    def page(self, after: int, *, replica_id: str, states: Iterable[Any] = ()) -> EndedPage:
        """Return the oldest `PAGE` requests whose seq is above `after`; SGLang's `states` are of those in flight."""
        kept_from = self._last - len(self._ended) + 1
        first = max(0, after + 1 - kept_from)
        return EndedPage(
            replica_id=replica_id,
            epoch=self.epoch,
            kept_from=kept_from,
            kept_since_ms=self._ended[0].ended_at_ms if self._ended else None,
            last=self._last,
            in_flight=tuple(sorted(filter(None, {_request_id(_custom_params(state.obj)) for state in states}))),
            ended=tuple(islice(self._ended, first, first + PAGE)),
        )

    def of(self, request_id: str) -> list[EndedRequest]:
        """Return what of `request_id` has ended, newest first, while no more than `PAGE` others have since."""
        return [ended for ended in islice(reversed(self._ended), PAGE) if ended.request_id == request_id]


def install(ended: EndedRequests) -> None:
    """Tell `ended` of every end that SGLang's tokenizer manager hears of in this process."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    stock_output, stock_abort = TokenizerManager._handle_batch_output, TokenizerManager._handle_abort_req
    stock_init = TokenizerManager._init_req_state

    async def handle_batch_output(self: Any, output: Any) -> None:
        for state, counts in _ends_of(output, self.rid_to_state):
            ended.add(state, counts)
        await stock_output(self, output)

    def handle_abort_req(self: Any, abort: Any) -> None:
        # A request that waits is taken out of its queue, and no batch tells of its end.
        if (state := self.rid_to_state.get(abort.rid)) is not None and not _checks_health(abort.rid):
            ended.add(state, Counts(0, len(state.output_ids), 0, "abort"))
        stock_abort(self, abort)

    def init_req_state(self: Any, request: Any, *args: Any) -> None:
        stock_init(self, request, *args)
        if isinstance(request.rid, list):
            # Every choice is a copy of its prompt's request.
            for place in range(len(request.rid)):
                setattr(request[place], _PROMPT, place)

    TokenizerManager._handle_batch_output = handle_batch_output
    TokenizerManager._handle_abort_req = handle_abort_req
    TokenizerManager._init_req_state = init_req_state


def _ends_of(output: Any, states: Mapping[str, Any]) -> Iterator[tuple[Any, Counts]]:
    """Yield the state and the counts of each request that ended with SGLang's `output` of a step."""
    if not hasattr(output, "completion_tokens"):
        return
    places = [place for place, reason in enumerate(output.finished_reasons) if reason is not None]
    if not places:
        return
    from sglang.srt.managers.io_struct import unwrap_from_pickle

    # SGLang does the same next, and finds it done.
    output.time_stats = times = unwrap_from_pickle(output.time_stats)
    for place in places:
        rid = output.rids[place]
        if (state := states.get(rid)) is None or _checks_health(rid):
            continue
        yield state, _counts(output, place, None if times is None else times[place])


def _counts(output: Any, place: int, times: Any) -> Counts:
    reason = output.finished_reasons[place]
    tokens = output.prompt_tokens[place], output.completion_tokens[place], output.cached_tokens[place]
    if reason.get("status_code") == HTTPStatus.BAD_REQUEST and tokens[1] <= 1:
        # SGLang runs what it refuses for one step, with a prompt of one token.
        tokens = (0, 0, 0)
    return Counts(*tokens, str(reason["type"]), times)


def _stages_ms(arrived_s: float, now_s: float, counts: Counts) -> dict[str, float]:
    """Return how long a request took for each stage that it reached."""
    prefill_s = getattr(counts.times, "forward_entry_time", 0.0)
    first_s = getattr(counts.times, "prefill_finished_time", 0.0)
    stages = {"queue_ms": (arrived_s, prefill_s), "prefill_ms": (prefill_s, first_s)}
    if counts.completion_tokens:
        stages["decode_ms"] = (first_s, now_s)
    return {
        name: max(0.0, (ended_s - begun_s) * 1000) for name, (begun_s, ended_s) in stages.items() if begun_s and ended_s
    }


def _checks_health(rid: str) -> bool:
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

    return rid.startswith(HEALTH_CHECK_RID_PREFIX)


def _custom_params(request: Any) -> Mapping[str, Any]:
    params = getattr(request, "sampling_params", None)
    custom = params.get("custom_params") if isinstance(params, Mapping) else None
    return custom if isinstance(custom, Mapping) else {}


def _request_id(params: Mapping[str, Any]) -> str | None:
    found = params.get(REQUEST_PARAM)
    return found if isinstance(found, str) and re.fullmatch(REQUEST_ID, found) else None


def attained_tok_s(ended: Iterable[EndedRequest]) -> float | None:
    """Return the mean speed of the users among `ended` after their first tokens; None where none had two tokens."""
    paces = [(one.completion_tokens - 1, one.decode_ms) for one in ended if one.completion_tokens > 1 and one.decode_ms]
    decode_ms = sum(took_ms for _, took_ms in paces)
    return sum(tokens for tokens, _ in paces) * 1000 / decode_ms if decode_ms else None
