"""Runs a small target in this process with transformers: its answers, and the features of every position.

The demo drafter's recipe and the evaluation of small targets get their features here, without an engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.chat_tokenizer import ChatTokenizer
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
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Written:
    """What the target wrote after each prefix of a batch: records in the order of the prefixes, and whether it ended
    its turn itself."""

    records: tuple[FeatureRecord, ...]
    ended: tuple[bool, ...]


class LocalTarget:
    """A Hugging Face checkpoint with its tokenizer and chat template, in its own number format. Records are on the
    host, whatever device made them."""

    def __init__(
        self,
        folder: Path,
        layer_ids: Sequence[int],
        *,
        float32: bool = False,
        device: torch.device = _CPU,
        thinking: bool | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: the checkpoint.
            layer_ids: 0-based layers whose hidden states are the features; not the last, which transformers normalises.
            float32: compute and keep features in float32, as an engine does that serves in float32.
            device: where it computes.
            thinking: `enable_thinking` of the chat template; None leaves that to the template.

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
        # Readers of weights and configs raise different errors, even bare `Exception`.
        except Exception as error:
            raise ArtifactError(
                f"{folder}: transformers must be able to run it (found {type(error).__name__}: {error}). Restore the "
                "checkpoint, or take features from an engine."
            ) from None
        self.chat = ChatTokenizer(folder, thinking=thinking)
        # Features are stored in the checkpoint's format, whatever format computes them.
        self._kept_dtype = torch.float32 if float32 or self._model.dtype == torch.float32 else torch.bfloat16
        if float32 or (device.type == "cpu" and not has_bfloat16_units()):
            self._model.float()
        self._model.to(device)
        self.device = device
        self.layer_ids = tuple(layer_ids)
        self.binding, self.hidden_size = facts.binding, facts.hidden_size
        stops = self._model.generation_config.eos_token_id or self.chat.end_token_id
        self._ends = torch.tensor([stops], device=device).flatten()

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
        return self.chat.encode(prompt)

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator of draws for `write`, on this model's device."""
        return torch.Generator(self.device).manual_seed(seed)

    @torch.no_grad()
    def write(
        self,
        prefixes: Sequence[Sequence[int]],
        tokens: int,
        temperature: float,
        generator: torch.Generator,
        over: Callable[[], bool] = lambda: False,
    ) -> Written:
        """Continue prefixes side by side, each up to its end of turn or `tokens` tokens.

        Args:
            prefixes: token ids, at least one each.
            tokens: the most to write, at least 1.
            temperature: 0 takes the likeliest token.
            generator: of the draws, from `generator`.
            over: asked after each token whether to stop writing, as when time is up; answers are cut there.
        """
        batch = _Batch(prefixes, self.device)
        cache = Cache(layer_class_to_replicate=_RoomyLayer)
        last = self._step(batch, batch.ids, cache)
        for _ in range(tokens):
            chosen = _choose(self._model.lm_head(last), temperature, generator)
            batch.append()
            last = self._step(batch, chosen.unsqueeze(1), cache)
            kept = batch.drop_finished(torch.isin(chosen, self._ends))
            if kept is not None:
                cache.batch_select_indices(kept)
                last = last[kept]
            if not len(last) or over():
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
        batch.keep(ids, features.to(self._kept_dtype), outcome.last_hidden_state.to(self._kept_dtype))
        final: Tensor = outcome.last_hidden_state[:, -1]
        return final


class _Batch:
    """Left-padded rows that grow together. Finished rows are dropped once there are enough of them.

    The host waits for the device once a token: to learn how many rows are left.
    """

    def __init__(self, prefixes: Sequence[Sequence[int]], device: torch.device) -> None:
        self._widths = [len(prefix) for prefix in prefixes]
        widest = max(self._widths)
        padded = [[0] * (widest - len(prefix)) + list(prefix) for prefix in prefixes]
        self.ids = torch.tensor(padded, device=device)
        pads = torch.tensor([widest - width for width in self._widths], device=device)
        self.visible = (torch.arange(widest, device=device) >= pads.unsqueeze(1)).long()
        self._rows = torch.arange(len(prefixes), device=device)
        self._done = torch.zeros(len(prefixes), dtype=torch.bool, device=device)
        self._written = torch.zeros(len(prefixes), dtype=torch.int64, device=device)
        self._ended = self._done.clone()
        # What the live rows had since the last were dropped: ids [rows, n], features and final states [rows, n, ...].
        self._columns: list[tuple[Tensor, Tensor, Tensor]] = []
        self._parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in prefixes]

    def positions(self, width: int) -> Tensor:
        """Return the positions of the newest `width` ids [rows, width]; a row's first own id has position 0."""
        return (self.visible.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]

    def append(self) -> None:
        """Make room for one more token of each live row."""
        self.visible = torch.nn.functional.pad(self.visible, (0, 1), value=1)
        self._written[self._rows] += (~self._done).long()

    def keep(self, ids: Tensor, features: Tensor, hidden: Tensor) -> None:
        """Store the newest ids [rows, n] and their states, [rows, n, K*hidden] and [rows, n, hidden]."""
        self._columns.append((ids, features, hidden))

    def drop_finished(self, ends: Tensor) -> Tensor | None:
        """Note which rows wrote their end [rows]; return the places of those to go on with if it is time to drop."""
        self._ended[self._rows] |= ends & ~self._done
        self._done = self._done | ends
        if len(self._rows) - int(self._done.sum()) > LIVE_SHARE * len(self._rows):
            return None
        self._close()
        live = (~self._done).nonzero().squeeze(1)
        self._rows, self._done, self.visible = self._rows[live], self._done[live], self.visible[live]
        return live

    def _close(self) -> None:
        """Bring what the live rows had to the host, and give each row its own."""
        if not self._columns:
            return
        ids, features, hidden = (torch.cat(parts, dim=1).cpu() for parts in zip(*self._columns, strict=True))
        for place, row in enumerate(self._rows.tolist()):
            self._parts[row].append((ids[place], features[place], hidden[place]))
        self._columns = []

    def written(self) -> Written:
        """Return the records."""
        self._close()
        lengths = self._written.tolist()
        records = [self._record(row, length) for row, length in enumerate(lengths)]
        return Written(tuple(records), tuple(self._ended.tolist()))

    def _record(self, row: int, length: int) -> FeatureRecord:
        width = self._widths[row]
        first = max(self._widths) - width
        own = slice(first, first + width + length)
        ids, features, hidden = (torch.cat(parts)[own].clone() for parts in zip(*self._parts[row], strict=True))
        return FeatureRecord(ids, torch.arange(len(ids)) >= width, features, hidden)


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
