"""Has a replica answer prompts into a file of answers (`drafter/data/answers.py`); a killed call loses what is open."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ReplicaError, ReplicaLost
from sparktier.configs.files import staged
from sparktier.configs.json_lines import objects_in
from sparktier.drafter.data.answer_stores import AnswersDone
from sparktier.drafter.data.chat_tokenizer import ChatTokenizer
from sparktier.drafter.data.prompts import Prompt
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.clients.replica_keys import bearer

# Requests open at a time; what the replica's plan has no room for waits here.
OPEN = 16
_TELL_EVERY = 64
_NO_ROOM = (429, 503)
_AGAIN_S = 1.0
_ANSWER_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class EngineWriter:
    """Asks the replica at `url`, whose admin key is `key`, for answers of up to `tokens` tokens."""

    url: str
    chat: ChatTokenizer
    tokens: int
    longest_prompt_tokens: int
    tell: Callable[[AnswersDone], None]
    key: str = field(kw_only=True, repr=False)

    def write(self, prompts: Sequence[Prompt], temperatures: Sequence[float], file: Path) -> Path:
        """Answer the prompts that `file` lacks, prompt k at temperature `temperatures[k % n]`, and return it.

        Raises:
            ReplicaError: the replica is gone or refuses a prompt.
        """
        done = _answered(file)
        asked = [
            (prompt.digest, ids, temperatures[number % len(temperatures)])
            for number, prompt in enumerate(prompts)
            if len(ids := self.chat.encode(prompt)) <= self.longest_prompt_tokens and prompt.digest not in done
        ]
        if asked:
            asyncio.run(self._write(asked, file))
        return file

    async def _write(self, asked: Sequence[tuple[str, list[int], float]], file: Path) -> None:
        waiting, done, tokens, started_s = list(reversed(asked)), 0, 0, time.monotonic()
        with file.open("a", encoding="utf-8") as lines:

            async def work(client: AsyncReplicaClient) -> None:
                nonlocal done, tokens
                while waiting:
                    digest, prompt_ids, temperature = waiting.pop()
                    answer_ids = await self._answer(client, prompt_ids, temperature)
                    row = {"digest": digest, "prompt_ids": prompt_ids, "answer_ids": answer_ids}
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    done, tokens = done + 1, tokens + len(answer_ids)
                    if done % _TELL_EVERY == 0 or done == len(asked):
                        self.tell(AnswersDone(file.stem, done, len(asked), tokens, time.monotonic() - started_s))

            try:
                async with AsyncReplicaClient(bearer(self.key)) as client, asyncio.TaskGroup() as group:
                    for _ in range(OPEN):
                        group.create_task(work(client))
            except* ReplicaError as failed:
                raise failed.exceptions[0] from None

    async def _answer(self, client: AsyncReplicaClient, prompt_ids: list[int], temperature: float) -> list[int]:
        sampling = {"temperature": temperature, "max_new_tokens": self.tokens}
        body = {"input_ids": prompt_ids, "sampling_params": sampling}
        while True:
            try:
                answer = await client.ask("POST", self.url + "/generate", timeout_s=_ANSWER_TIMEOUT_S, json=body)
            except ReplicaLost as error:
                raise ReplicaError(
                    f"{self.url}: the engine must answer prompts ({error}). Start it again, then go on."
                ) from None
            if answer.status not in _NO_ROOM:
                break
            await asyncio.sleep(_AGAIN_S)
        if answer.status != OK:
            raise ReplicaError(f"{self.url}: {answer.text[:300]} (status {answer.status})")
        written: dict[str, Any] = json.loads(answer.content)
        return [int(token) for token in written["output_ids"]]


def _answered(file: Path) -> set[str]:
    """Return the digests of the prompts that `file` has answers to, and drop a line that a crash cut."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return set()
    whole = file.read_text(encoding="utf-8").split("\n")[:-1]
    with staged(file) as part:
        part.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return {str(row.get("digest")) for _, row in objects_in(whole, file)}
