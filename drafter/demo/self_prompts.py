"""Samples prompts from the target itself: an instruct model completes the beginning of a user's turn.

They vary more than templates do and need no data (Magpie, arXiv 2406.08464).
"""

from collections.abc import Callable

from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt

BATCH = 128
LEAST_CHARS = 20


def self_written(
    target: LocalTarget,
    count: int,
    beginning: str,
    tokens: int,
    temperature: float,
    seed: int,
    done: Callable[[int], None],
    over: Callable[[], bool] = lambda: False,
) -> list[Prompt]:
    """Sample user turns that start with `beginning` and drop those not ended within `tokens` tokens.

    Args:
        target: the model to be asked.
        count: how many to sample; fewer are returned.
        beginning: what each turn starts with, "" for anything.
        tokens: the longest turn kept.
        temperature: of the sampling, above 0.
        seed: of the draws.
        done: called with the number sampled in each batch.
        over: asked before each batch whether to stop, as when time is up.
    """
    generator = target.generator(seed)
    prefix = target.chat.encode_user_turn(beginning)
    prompts = []
    for start in range(0, count, BATCH):
        if over():
            break
        rows = min(BATCH, count - start)
        written = target.write([prefix] * rows, tokens, temperature, generator, over)
        for record, ended in zip(written.records, written.ended, strict=True):
            text = beginning + target.chat.decode(record.token_ids[record.answer_mask].tolist())
            if ended and len(text.strip()) >= len(beginning) + LEAST_CHARS:
                prompts.append(Prompt((text.strip(),)))
        done(rows)
    return prompts
