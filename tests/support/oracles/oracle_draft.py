"""Writes a DSpark draft that guesses a tiny target's next token often enough to exercise every accept path.

A random draft is accepted once in a vocabulary, so it would test no commit code. This one looks bigrams of the target's
own greedy text up in its Markov head; the rest of it is random and small.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.checkpoint import save_draft
from sparktier.drafter.model.config import DraftConfig
from sparktier.drafter.model.draft_model import DraftModel

# The target's most frequent continuation scores above the second, both far above the random backbone.
_GAINS = (60.0, 45.0)


def make_oracle_draft(
    directory: Path,
    target: Path,
    *,
    seed: int = 0,
    block_tokens: int = 5,
    wrong_frac: float = 0.2,
    rank: int = 64,
    gains: tuple[float, float] = _GAINS,
) -> Path:
    """Write the draft for the checkpoint in `target` under `directory` and return it.

    `wrong_frac` of the tokens get first and second guess swapped, so that rejections happen at every position. `gains`
    are the logits of the first and the second guess; small ones make a drafter that is unsure.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = read_target(target)
    first, second = _continuations(target, generator)
    swapped = torch.rand(len(first), generator=generator) < wrong_frac
    first, second = torch.where(swapped, second, first), torch.where(swapped, first, second)
    draft = DraftModel(_config(tables.hidden_size, tables.num_hidden_layers, tables.vocab_size, block_tokens, rank))
    draft.initialise(generator)
    codes = torch.nn.functional.normalize(torch.randn(tables.vocab_size, rank, generator=generator), dim=1)
    weights = draft.state_dict()
    weights["markov_head.markov_w2.weight"].copy_(codes)
    weights["markov_head.markov_w1.weight"].copy_(gains[0] * codes[first] + gains[1] * codes[second])
    save_draft(draft, directory, tables.binding, dtype=torch.float32)
    return directory


def _config(hidden: int, layers: int, vocab: int, block_tokens: int, rank: int) -> DraftConfig:
    return DraftConfig(
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=2 * hidden,
        vocab_size=vocab,
        block_size=block_tokens,
        num_target_layers=layers,
        target_layer_ids=(0, layers - 2),
        mask_token_id=4,
        markov_rank=rank,
        max_position_embeddings=8192,
    )


def _continuations(target: Path, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The two likeliest next tokens of each token [vocab], counted in the target's greedy text."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    prompts = torch.randint(5, model.config.vocab_size, (16, 12), generator=generator)
    with torch.no_grad():
        text = model.generate(prompts, max_new_tokens=80, do_sample=False, pad_token_id=1)[:, 12:]
    counts = torch.zeros(model.config.vocab_size, model.config.vocab_size)
    counts.index_put_((text[:, :-1].flatten(), text[:, 1:].flatten()), torch.ones(text[:, 1:].numel()), accumulate=True)
    best = counts.topk(2, dim=1).indices
    return best[:, 0], best[:, 1]
