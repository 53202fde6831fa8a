"""Runs a small target in this process with transformers: its answers, and the features of every position.

The demo drafter's recipe and the evaluation of small targets get their features here, without an engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.data.prompts import Prompt
from sparktier.drafter.data.target import read_target
from sparktier.kernels.cpu_features import has_bfloat16_units

# transformers' own layer copies the whole cache for every token; this one only when so many positions are full.
ROOM_TOKENS = 64
# Finished rows are computed along until so many rows are left: dropping them copies the cache.
LIVE_SHARE = 0.85
_ATTENTION = "sparktier_grouped"
_MARK = "\x00content\x00"


@dataclass(frozen=True)
class Written:
    """What the target wrote after each prefix of a batch: records in the order of the prefixes, and whether it ended
    its turn itself."""

    records: tuple[FeatureRecord, ...]
    ended: tuple[bool, ...]


class LocalTarget:
    """A Hugging Face checkpoint with its tokenizer and chat template, in its own number format on the CPU."""

    def __init__(self, folder: Path, layer_ids: Sequence[int], *, float32: bool = False) -> None:
        """Load the model.

        Args:
            folder: the checkpoint.
            layer_ids: 0-based layers whose hidden states are the features; not the last, which transformers normalises.
            float32: compute and keep features in float32, as an engine does that serves in float32.

        Raises:
            ArtifactError: the folder holds no model that transformers runs, or has no such layers.
        """
        facts = read_target(folder)
        if not layer_ids or max(layer_ids) >= facts.num_hidden_layers - 1:
            raise ArtifactError(
                f"{folder}: features come from layers 0 to {facts.num_hidden_layers - 2} (found {list(layer_ids)}). "
                "Choose layers before the last."
            )
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", attn_implementation=_ATTENTION
            ).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # Readers of weights, configs and tokenizers raise different errors, even bare `Exception`.
        except Exception as error:
            raise ArtifactError(
                f"{folder}: transformers must be able to run it (found {type(error).__name__}: {error}). Restore the "
                "checkpoint, or take features from an engine."
            ) from None
        if not self._tokenizer.chat_template:
            raise ArtifactError(
                f"{folder}: must have a chat template (found none in its tokenizer). Add chat_template.jinja, or take "
                "features from an engine."
            )
        # Features are stored in the checkpoint's format, whatever format computes them.
        self._kept_dtype = torch.float32 if float32 or self._model.dtype == torch.float32 else torch.bfloat16
        if float32 or not has_bfloat16_units():
            self._model.float()
        self.layer_ids = tuple(layer_ids)
        self.binding, self.hidden_size = facts.binding, facts.hidden_size
        stops = self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        self._ends = torch.tensor([stops]).flatten()

    def spec(self, dataset: str, temperature: float, seed: int) -> FeatureSpec:
        """Return the spec of records written at `temperature`."""
        return FeatureSpec(
            target_layer_ids=self.layer_ids,
            hidden_size=self.hidden_size,
            dtype="float32" if self._kept_dtype == torch.float32 else "bfloat16",
            temperature=temperature,
            seed=seed,
            dataset=dataset,
            target_sha256=self.binding.target_sha256,
            tokenizer_sha256=self.binding.tokenizer_sha256,
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of the first turn as the chat template lays it out, ready to be answered."""
        return self._ids(self._laid_out(prompt.turns[0], answer=True))

    def encode_user_turn(self, beginning: str) -> list[int]:
        """Return the ids of a conversation that stops inside the user's first turn, after `beginning`."""
        return self._ids(self._laid_out(_MARK, answer=False).split(_MARK)[0] + beginning)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _laid_out(self, content: str, *, answer: bool) -> str:
        turns = [{"role": "user", "content": content}]
        text: str = self._tokenizer.apply_chat_template(turns, add_generation_prompt=answer, tokenize=False)
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.no_grad()
    def write(
        self, prefixes: Sequence[Sequence[int]], tokens: int, temperature: float, generator: torch.Generator
    ) -> Written:
        """Continue prefixes side by side, each up to its end of turn or `tokens` tokens.

        Args:
            prefixes: token ids, at least one each.
            tokens: the most to write, at least 1.
            temperature: 0 takes the likeliest token.
            generator: of the draws, on the CPU.
        """
        batch = _Batch(prefixes)
        cache = Cache(layer_class_to_replicate=_RoomyLayer)
        last = self._step(batch, batch.ids, cache)
        for _ in range(tokens):
            chosen = _choose(self._model.lm_head(last), temperature, generator)
            batch.append(chosen)
            last = self._step(batch, chosen.unsqueeze(1), cache)
            kept = batch.drop_finished(torch.isin(chosen, self._ends))
            if kept is not None:
                cache.batch_select_indices(kept)
                last = last[kept]
            if not len(last):
                break
        return batch.written()

    def _step(self, batch: "_Batch", ids: Tensor, cache: Cache) -> Tensor:
        """Run new ids [rows, n] of the live rows; return their last positions' final hidden states [rows, hidden]."""
        outcome = self._model.model(
            input_ids=ids,
            attention_mask=batch.visible,
            position_ids=batch.positions(ids.shape[1]),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        states = outcome.hidden_states
        features = torch.cat([states[layer + 1] for layer in self.layer_ids], dim=-1)
        batch.keep(features.to(self._kept_dtype), outcome.last_hidden_state.to(self._kept_dtype))
        final: Tensor = outcome.last_hidden_state[:, -1]
        return final


class _Batch:
    """Left-padded rows that grow together. Finished rows are dropped once there are enough of them."""

    def __init__(self, prefixes: Sequence[Sequence[int]]) -> None:
        widest = max(map(len, prefixes))
        self.prefixes = [torch.tensor(prefix) for prefix in prefixes]
        self.ids = torch.stack([torch.nn.functional.pad(ids, (widest - len(ids), 0)) for ids in self.prefixes])
        pads = torch.tensor([widest - len(prefix) for prefix in prefixes])
        self.visible = (torch.arange(widest) >= pads.unsqueeze(1)).long()
        self._rows = torch.arange(len(prefixes))
        self._done = torch.zeros(len(prefixes), dtype=torch.bool)
        self._answers: list[list[int]] = [[] for _ in prefixes]
        self._ended = [False] * len(prefixes)
        self._states: list[list[tuple[Tensor, Tensor]]] = [[] for _ in prefixes]

    def positions(self, width: int) -> Tensor:
        """Return the positions of the newest `width` ids [rows, width]; a row's first own id has position 0."""
        return (self.visible.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]

    def append(self, chosen: Tensor) -> None:
        """Add one token to each live row [rows]."""
        self.visible = torch.nn.functional.pad(self.visible, (0, 1), value=1)
        for row, done, token in zip(self._rows.tolist(), self._done.tolist(), chosen.tolist(), strict=True):
            if not done:
                self._answers[row].append(token)

    def keep(self, features: Tensor, hidden: Tensor) -> None:
        """Store the newest positions' states, [rows, n, K*hidden] and [rows, n, hidden], of rows not finished."""
        for place, (row, done) in enumerate(zip(self._rows.tolist(), self._done.tolist(), strict=True)):
            if not done:
                own = min(features.shape[1], int(self.visible[place].sum()))
                self._states[row].append((features[place, -own:].clone(), hidden[place, -own:].clone()))

    def drop_finished(self, ends: Tensor) -> Tensor | None:
        """Note which rows wrote their end [rows]; return the places of those to go on with if it is time to drop."""
        for row, done, end in zip(self._rows.tolist(), self._done.tolist(), ends.tolist(), strict=True):
            self._ended[row] |= end and not done
        self._done = self._done | ends
        live = (~self._done).nonzero().squeeze(1)
        if len(live) > LIVE_SHARE * len(self._rows):
            return None
        self._rows, self._done, self.visible = self._rows[live], self._done[live], self.visible[live]
        return live

    def written(self) -> Written:
        """Return the records."""
        return Written(tuple(self._record(row) for row in range(len(self.prefixes))), tuple(self._ended))

    def _record(self, row: int) -> FeatureRecord:
        prefix, answer = self.prefixes[row], torch.tensor(self._answers[row], dtype=torch.int64)
        features, hidden = (torch.cat(parts) for parts in zip(*self._states[row], strict=True))
        tokens = torch.cat((prefix, answer))
        return FeatureRecord(tokens, torch.arange(len(tokens)) >= len(prefix), features, hidden)


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer with room to grow in place."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._room is None or end > self._room[0].shape[2]:
            old = (self.keys, self.values) if start else (key_states[:, :, :0], value_states[:, :, :0])
            self._room = (_with_room(old[0], end), _with_room(old[1], end))
        keys, values = self._room
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None


def _grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does, but without copies of keys and values for every query head of a group.

    Those copies were most of the time of decoding long contexts side by side (transformers 5.19, `use_gqa_in_sdpa`).
    """
    del module
    causal = attention_mask is None and query.shape[2] > 1
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attention_mask, is_causal=causal, scale=options.get("scaling"), enable_gqa=True
    )
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _grouped_attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _with_room(old: Tensor, end: int) -> Tensor:
    wide = old.new_zeros((*old.shape[:2], end + ROOM_TOKENS, old.shape[3]))
    wide[:, :, : old.shape[2]] = old
    return wide


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits.argmax(dim=-1)
    chances = (logits.float() / temperature).softmax(dim=-1)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)
