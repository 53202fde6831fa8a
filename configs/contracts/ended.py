"""`EndedPage`, from a replica to the gateways: what each request that ended there had, as the engine counted it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from sparktier.configs.contracts.message import Count, Message, Millis, Part, Rate, ReplicaId
from sparktier.configs.settings.tiers import TierId

Seq = Annotated[int, Field(ge=1)]
REQUEST_ID = r"^[\x21-\x7e]{1,128}$"
"""What a request's id is made of: ASCII that prints, without spaces."""
REQUEST_ID_HEADER = "x-sparktier-request"
"""Where the gateway tells a replica its id of a request."""
RequestId = Annotated[str, Field(pattern=REQUEST_ID)]


class EndedRequest(Part):
    """One choice of one prompt. `request_id` and `tier` are those that the gateway sent; None is not said.

    SGLang prefills the prompt of several choices once before them, as a request of its own without completion tokens.
    `prompt` tells the prompts of a request apart. A request that was aborted while it waited has no prompt tokens.
    Times are None where a request did not get that far: `queue_ms` from its arrival to its prefill, `prefill_ms` from
    there to its first token, `decode_ms` from its first token to its last.
    """

    seq: Seq
    request_id: RequestId | None = None
    prompt: Count = 0
    tier: TierId | None = None
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count
    finish_reason: str
    arrived_at_ms: Millis
    ended_at_ms: Millis
    queue_ms: Rate | None = None
    prefill_ms: Rate | None = None
    decode_ms: Rate | None = None


class EndedPage(Message):
    """Ended requests after a `seq`, oldest first. Another `epoch` is another process, which lists none of before.

    `kept_from` is the seq of the oldest that the replica still has, which ended at `kept_since_ms`; `last` is that of
    the newest. There is a next page while `ended` ends before `last`. `in_flight` are ids of requests that still run or
    wait.
    """

    replica_id: ReplicaId
    epoch: Count
    kept_from: Seq
    kept_since_ms: Millis | None = None
    last: Count
    in_flight: Annotated[tuple[RequestId, ...], Field(strict=False)] = ()
    ended: Annotated[tuple[EndedRequest, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not _rises([request.seq for request in self.ended]):
            raise ValueError("ended must be in rising order of seq")
        if self.ended and not self.kept_from <= self.ended[0].seq <= self.ended[-1].seq <= self.last:
            raise ValueError("every seq must be from kept_from to last")
        return self


def _rises(numbers: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(numbers))
