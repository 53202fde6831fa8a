"""Has a target in this process answer prompts batch by batch, each batch a feature store.

A killed call loses one batch; a call whose time is up cuts its last answers, whose tokens are the target's own all the
same, and so keeps what it has.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, write_json
from sparktier.drafter.data.answers import MIN_ANSWER_TOKENS
from sparktier.drafter.data.feature_store import FeatureWriter, Manifest
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt

_SEQUENCES_PER_SHARD = 64
# However late it is, so much of an answer is written: less can't be drafted for.
LEAST_TOKENS = 16


@dataclass(frozen=True)
class AnswerPlan:
    """How prompts are answered: the longest answer and the longest prompt kept, prompts side by side, the seed, and the
    moment (`time.monotonic`) at which time is up."""

    tokens: int
    batch: int
    seed: int
    longest_prompt_tokens: int
    until_s: float = float("inf")


@dataclass(frozen=True)
class AnswersDone:
    """Progress: prompts answered of all, and the tokens written in so many seconds of this call."""

    name: str
    prompts: int
    of: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        left_s = (self.of - self.prompts) * self.seconds / max(self.prompts, 1)
        return f"{self.name}: {self.prompts} of {self.of} prompts, {rate:.0f} tokens/s, {left_s:.0f} s left at most"


def answer_stores(
    target: LocalTarget,
    prompts: Sequence[Prompt],
    folder: Path,
    name: str,
    temperatures: Sequence[float],
    plan: AnswerPlan,
    tell: Callable[[AnswersDone], None],
) -> list[Path]:
    """Answer prompts and return the stores `folder/NAME-NUMBER-T...`; batch k at temperature `temperatures[k % n]`.

    What an earlier call answered is not answered again; where it ended (all prompts, or time was up), none is.

    Raises:
        ArtifactError: no prompt is short enough, no answer long enough, or the disk is too small.
    """
    note = folder / f"{name}.json"
    if note.exists():
        return [folder / str(store) for store in read_json(note, "a list of answered batches")["stores"]]
    batches = _batches(target, prompts, plan)
    if not batches:
        raise ArtifactError(
            f"{name}: needs a prompt of at most {plan.longest_prompt_tokens} tokens (found none in {len(prompts)} "
            "prompts). Give others."
        )
    total = sum(map(len, batches))
    stores: list[Path] = []
    started_s, done, written = time.monotonic(), 0, 0
    for number, batch in enumerate(batches):
        if stores and time.monotonic() > plan.until_s:
            break
        temperature = temperatures[number % len(temperatures)]
        store = folder / f"{name}-{number:03d}-T{temperature:g}"
        if store.exists():
            total -= len(batch)
        else:
            written += _answer(target, batch, store, name, temperature, plan, number)
            done += len(batch)
            tell(AnswersDone(name, done, total, written, time.monotonic() - started_s))
        if store.exists():
            stores.append(store)
    if not stores:
        raise ArtifactError(
            f"{name}: answers need {MIN_ANSWER_TOKENS} tokens or more (found none such). Use other prompts."
        )
    write_json(note, {"stores": [store.name for store in stores]})
    return stores


def _batches(target: LocalTarget, prompts: Sequence[Prompt], plan: AnswerPlan) -> list[list[list[int]]]:
    """Return the encoded prompts in batches of about one length, the batches in random order: time may be up early."""
    encoded = sorted((target.encode(prompt) for prompt in prompts), key=len)
    short = [ids for ids in encoded if len(ids) <= plan.longest_prompt_tokens]
    batches = [short[start : start + plan.batch] for start in range(0, len(short), plan.batch)]
    random.Random(plan.seed).shuffle(batches)
    return batches


def _answer(
    target: LocalTarget,
    batch: Sequence[Sequence[int]],
    folder: Path,
    name: str,
    temperature: float,
    plan: AnswerPlan,
    number: int,
) -> int:
    """Write one store in one step, unless no answer is long enough; return how many tokens were written."""
    seed, steps = plan.seed + number, 0

    def over() -> bool:
        nonlocal steps
        steps += 1
        return steps >= LEAST_TOKENS and time.monotonic() > plan.until_s

    written = target.write(batch, plan.tokens, temperature, target.generator(seed), over)
    tokens = [int(record.answer_mask.sum()) for record in written.records]
    records = [record for record, count in zip(written.records, tokens, strict=True) if count >= MIN_ANSWER_TOKENS]
    if not records:
        return sum(tokens)
    manifest = Manifest(
        spec=target.spec(name, temperature, seed),
        lengths_tokens=tuple(len(record.token_ids) for record in records),
        sequences_per_shard=_SEQUENCES_PER_SHARD,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    writer = FeatureWriter(part, manifest, shutil.disk_usage(folder.parent).free)
    for record in records:
        writer.append(record)
    part.rename(folder)
    return sum(tokens)
