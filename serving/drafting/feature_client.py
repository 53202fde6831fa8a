"""Asks a replica for the features of answers: as a producer for `FeatureStream`, or to fill a feature store.

Requests go to the replica's own port, not to the front.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load

from sparktier.configs.errors import ArtifactError, ReplicaError, ReplicaLost
from sparktier.drafter.data.answers import Answer
from sparktier.drafter.data.feature_store import FeatureWriter
from sparktier.drafter.data.feature_stream import FeatureStream
from sparktier.drafter.data.features import FeatureDtype, FeatureSpec
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.serving.clients.replica import OK, UNAUTHORIZED, AsyncReplicaClient, ReplicaAnswer, ReplicaClient
from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV, bearer

_PATH = "/sparktier/features"
# A record waits for those before it, of this trainer and of others.
_RECORD_TIMEOUT_S = 600.0


class EngineFacts(BaseModel):
    """What a replica says about the records it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_layer_ids: tuple[int, ...]
    hidden_size: int
    dtype: FeatureDtype
    longest_tokens: int
    target_sha256: str
    tokenizer_sha256: str

    def spec(self, *, dataset: str, temperature: float, seed: int = 0) -> FeatureSpec:
        """Return the spec of the features of answers drawn with `temperature` and `seed`."""
        made_by = self.model_dump(exclude={"longest_tokens"})
        return FeatureSpec(dataset=dataset, temperature=temperature, seed=seed, **made_by)


def engine_facts(url: str, *, key: str) -> EngineFacts:
    """Ask the replica at `url`, with its admin `key`, what its records are.

    Raises:
        ReplicaError: no replica answers at `url`, or it makes no features.
    """
    cure = "Set training.target_layer_ids in its settings, and give the replica's own address, not the front's."
    try:
        answer = ReplicaClient(url, bearer(key), timeout_s=_RECORD_TIMEOUT_S).ask("GET", _PATH)
        _require_opened(url, answer)
        if answer.status != OK:
            raise ReplicaError(f"{url}: a replica must hand out features (found status {answer.status}). {cure}")
        return EngineFacts.model_validate_json(answer.content)
    except (ReplicaLost, ValidationError) as error:
        raise ReplicaError(f"{url}: a replica must hand out features ({_short(error)}). {cure}") from None


@dataclass(frozen=True)
class EngineFeatures:
    """Makes the features of `answers` on the replica at `url`, asking for `ahead` records before they are read.

    `key` is the replica's admin key.
    """

    url: str
    answers: Sequence[Answer]
    ahead: int = 2
    key: str = field(kw_only=True, repr=False)

    @property
    def lengths_tokens(self) -> tuple[int, ...]:
        """Return every sequence's length."""
        return tuple(answer.length_tokens for answer in self.answers)

    def require_fit(self, facts: EngineFacts) -> None:
        """Raise ArtifactError if an answer is longer than the engine takes."""
        longest = max(self.lengths_tokens)
        if longest > facts.longest_tokens:
            raise ArtifactError(
                f"answers: {self.url} takes up to {facts.longest_tokens} tokens (found one of {longest}). Raise its "
                "model.context_tokens, or leave longer answers out."
            )

    def stream(self, spec: FeatureSpec, in_flight: int) -> FeatureStream:
        """Return a source of the features; at most `in_flight` records wait unread, and `ahead` more are asked for."""
        return FeatureStream(spec, self.lengths_tokens, self.produce, in_flight)

    def fill(self, writer: FeatureWriter) -> None:
        """Write the records that the store of `writer` lacks; another call resumes where this one stopped."""
        for record in self.produce(iter(range(writer.next_index, len(self.answers)))):
            writer.append(record)

    def produce(self, order: Iterator[int]) -> Iterator[FeatureRecord]:
        """Yield the records numbered in `order`. Closing the iterator ends the engine's work for it.

        Raises:
            ReplicaError: the engine is gone or refuses a sequence.
        """
        # Leaving the runner cancels unread requests; they close their connections, so the engine ends them too.
        with asyncio.Runner() as runner:
            client = AsyncReplicaClient(bearer(self.key))
            waiting: deque[asyncio.Task[FeatureRecord]] = deque()
            try:
                for index in order:
                    waiting.append(runner.get_loop().create_task(_record(client, self.url, self.answers[index])))
                    if len(waiting) > self.ahead:
                        yield runner.run(_result(waiting.popleft()))
                while waiting:
                    yield runner.run(_result(waiting.popleft()))
            finally:
                runner.run(_hang_up(client, waiting))


async def _hang_up(client: AsyncReplicaClient, waiting: "deque[asyncio.Task[FeatureRecord]]") -> None:
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await client.close()


async def _result(task: "asyncio.Task[FeatureRecord]") -> FeatureRecord:
    return await task


async def _record(client: AsyncReplicaClient, url: str, answer: Answer) -> FeatureRecord:
    token_ids = [*answer.prompt_ids, *answer.answer_ids]
    try:
        response = await client.ask("POST", url + _PATH, timeout_s=_RECORD_TIMEOUT_S, json={"token_ids": token_ids})
        _require_opened(url, response)
        if response.status != OK:
            raise ReplicaError(f"{url}: {response.text[:300]} (status {response.status})")
        tensors = load(response.content)
    except (ReplicaLost, SafetensorError) as error:
        raise ReplicaError(
            f"{url}: the engine must answer with a record ({_short(error)}). Start it again, then go on."
        ) from None
    return FeatureRecord(
        token_ids=torch.tensor(token_ids, dtype=torch.int32),
        answer_mask=torch.arange(len(token_ids)) >= len(answer.prompt_ids),
        **tensors,
    )


def _require_opened(url: str, answer: ReplicaAnswer) -> None:
    if answer.status == UNAUTHORIZED:
        cure = f"Name the keys file of the replica's run in {KEYS_FILE_ENV}; a new run has new keys."
        raise ReplicaError(f"{url}: the replica must know the admin key (found status 401). {cure}")


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
