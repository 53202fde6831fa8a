"""From the bytes of a replica's stream to its messages, and what each becomes for the client."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json

from sparktier.configs.errors import ReplicaLost
from sparktier.serving.gateway.answer_edits import Edit, edits_for
from sparktier.serving.gateway.engine_errors import in_event
from sparktier.serving.gateway.engine_times import EngineTimes
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.usage import Tokens, UsageEdit

Message = dict[str, Any]
_DATA, _END = b"data: ", b"\n\n"
_DONE = b"[DONE]"


class MessageStream:
    """Reads server-sent events. `done` once the last one has come, after which a replica says nothing more."""

    def __init__(self) -> None:
        self.done = False
        self._held = b""

    def messages(self, chunk: bytes) -> list[Message]:
        """Return the messages that `chunk` completes, each parsed once.

        A replica can die in the middle of an event; the half is never returned.

        Raises:
            ReplicaLost: an event is no JSON object.
        """
        held = self._held + chunk if self._held else chunk
        end = held.rfind(_END)
        if end < 0:
            self._held = held
            return []
        self._held = held[end + len(_END) :]
        return list(self._parsed(held[:end].split(_END)))

    def _parsed(self, events: Sequence[bytes]) -> Iterator[Message]:
        for event in events:
            if not event.startswith(_DATA):
                continue
            data = event[len(_DATA) :]
            if data == _DONE:
                self.done = True
                return
            try:
                message = from_json(data)
            except ValueError as error:
                raise ReplicaLost(f"an event is no JSON ({error})"[:200]) from error
            if not isinstance(message, dict):
                raise ReplicaLost("an event is no object")
            yield message


class Restatement:
    """Makes of the engine's messages for one request what its client gets; it keeps state."""

    def __init__(self, body: Mapping[str, Any], *, tier: str, asked_tier: str | None = None) -> None:
        self.refused: Refused | None = None
        self._asked = body
        self._usage = UsageEdit(body, tier=tier, asked_tier=asked_tier)
        self._edits: tuple[Edit, ...] = edits_for(body)

    @property
    def tokens(self) -> Tokens:
        """What the engine has told of the request's tokens."""
        return self._usage.tokens

    @property
    def waited_ms(self) -> float:
        """How long the request was here before it was sent to its replica."""
        return self._usage.waited_ms

    @waited_ms.setter
    def waited_ms(self, value: float) -> None:
        self._usage.waited_ms = value

    @property
    def times(self) -> EngineTimes | None:
        """When the replica had begun it and had its tokens, once it has told."""
        return self._usage.times

    def whole(self, answer: Message) -> Message:
        """Return a whole answer after all edits."""
        self._usage.whole(answer)
        for edit in self._edits:
            edit(answer)
        return answer

    def events(self, messages: Sequence[Message]) -> list[Message]:
        """Return what the client gets of `messages`; an error among them is the last, and goes to `refused`."""
        shown = []
        for message in messages:
            if (refused := in_event(message, asked=self._asked)) is not None:
                self.refused = refused
                break
            if self._usage.event(message):
                for edit in self._edits:
                    edit(message)
                shown.append(message)
        return shown


async def batches(chunks: AsyncGenerator[bytes], restated: Restatement) -> AsyncGenerator[list[Message]]:
    """Yield what the client gets of each chunk, and nothing (`[]`) where none came for a while; see `OpenAnswer`.

    Raises:
        ReplicaLost: the stream broke off, or ended without its last event.
        Refused: the engine refused the request, or failed on it.
    """
    stream = MessageStream()
    async with aclosing(chunks):
        async for chunk in chunks:
            shown = restated.events(stream.messages(chunk)) if chunk else []
            if shown or not chunk:
                yield shown
            if restated.refused is not None:
                raise restated.refused
            if stream.done:
                return
    raise ReplicaLost("the stream ended without its last event")
