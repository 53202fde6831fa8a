"""Features of answers that the target gives in this process, kept in memory: for evaluation and calibration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.answers import MIN_ANSWER_TOKENS
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.data.prompts import Prompt

BATCH = 64


@dataclass(frozen=True)
class Answered:
    """Records in memory (a `FeatureSource`)."""

    spec: FeatureSpec
    records: Sequence[FeatureRecord]

    @property
    def lengths_tokens(self) -> Sequence[int]:
        """Return every sequence's length."""
        return [len(record.token_ids) for record in self.records]

    def read(self, order: Sequence[int]) -> Iterator[FeatureRecord]:
        """Yield sequences in `order`."""
        return (self.records[index] for index in order)


def answer_prompts(
    target: LocalTarget,
    prompts: Sequence[Prompt],
    spec: FeatureSpec,
    tokens: int,
    done: Callable[[int], None] = lambda prompts: None,
) -> Answered:
    """Have the target answer first turns, at the spec's temperature and seed.

    Args:
        target: the model.
        prompts: at least one.
        spec: from `target.spec`.
        tokens: the longest answer.
        done: called with the number of prompts of each finished batch.

    Raises:
        ArtifactError: no answer is long enough to draft for.
    """
    generator = target.generator(spec.seed)
    # Prompts of about one length side by side: shorter ones are padded to the longest of their batch.
    encoded = sorted((target.encode(prompt) for prompt in prompts), key=len)
    records: list[FeatureRecord] = []
    for start in range(0, len(encoded), BATCH):
        batch = encoded[start : start + BATCH]
        written = target.write(batch, tokens, spec.temperature, generator)
        records += [record for record in written.records if int(record.answer_mask.sum()) >= MIN_ANSWER_TOKENS]
        done(len(batch))
    if not records:
        raise ArtifactError(
            f"{spec.dataset}: answers need {MIN_ANSWER_TOKENS} tokens or more (found none such). Use other prompts."
        )
    return Answered(spec, records)
