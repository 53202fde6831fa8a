"""Scores an answer on every rank: one prefill of its whole sequence, of whose rows rank 0 takes the margins.

The request that does it has a key of its own in the prefix cache and leaves nothing there: no KV of verification is
read, and none of a client is evicted for it.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.layers.logits_processor import LogitsMetadata, LogitsProcessor
from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.sampling.sampling_params import SamplingParams
from torch import Tensor

from sparktier.serving.engine.canary.margins import Choice, margins

# SGLang counts requests of this kind nowhere, and hands their output to none.
_PREFIX = f"{HEALTH_CHECK_RID_PREFIX}_canary_"


@dataclass(frozen=True)
class Score:
    """What rank 0 tells all ranks to score: the tokens of one sequence after the first of its answer."""

    number: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    choice: Choice

    @property
    def request_id(self) -> str:
        """The id of the request that scores it."""
        return f"{_PREFIX}{self.number}"

    @property
    def scored_tokens(self) -> int:
        """How many of its tokens are scored."""
        return len(self.tokens) - self.prompt_tokens - 1


class _Part(NamedTuple):
    """The rows of a prefill that score tokens: where they begin in the pass, and at which position of `score`."""

    score: Score
    first: int
    position: int
    rows: int


class Scorer:
    """The scoring of one rank; `measures` on the one that takes margins, which the others only compute logits for."""

    def __init__(self, model: torch.nn.Module, *, measures: bool) -> None:
        self.measures = measures
        self._expected: dict[str, Score] = {}
        self._found: dict[str, list[Tensor]] = {}
        self._parts: list[_Part] = []
        for module in model.modules():
            if isinstance(module, LogitsProcessor):
                module.register_forward_pre_hook(self._before_logits)

    def begin(self, score: Score, scheduler: Any) -> None:
        """Queue the request that scores `score` in SGLang's `scheduler`."""
        params = SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True)
        params.normalize(scheduler.tokenizer)
        request = TokenizedGenerateReqInput(
            rid=score.request_id,
            input_text=None,
            input_ids=array("q", score.tokens),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=params,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            extra_key=score.request_id,
        )
        self._expected[score.request_id] = score
        scheduler.handle_generate_request(request)
        for queued in scheduler.waiting_queue:
            if queued.rid == score.request_id:
                queued.skip_radix_cache_insert = True

    @contextmanager
    def in_prefill(self, batch: Any) -> Iterator[None]:
        """While the body prefills SGLang's `batch`, take the margins of what it scores."""
        self._parts = list(self._parts_of(batch)) if self._expected else []
        try:
            yield
        finally:
            self._parts = []

    def ended(self, request_id: str) -> Tensor | None:
        """Return the margins [n] of the score that ended, on the CPU; None where none was expected or measured."""
        score, found = self._expected.pop(request_id, None), self._found.pop(request_id, None)
        return None if score is None or not found else torch.cat(found).cpu()

    def _parts_of(self, batch: Any) -> Iterator[_Part]:
        first = 0
        for request, before, extended in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
            score = self._expected.get(request.rid)
            if score is not None:
                # The row at a position says what comes after it; the last token of all has nothing after it.
                start = max(score.prompt_tokens, before)
                rows = min(before + extended, len(score.tokens) - 1) - start
                if rows > 0:
                    yield _Part(score, first + start - before, start, rows)
            first += extended

    def _before_logits(self, processor: LogitsProcessor, inputs: tuple[Any, ...]) -> None:
        if not self._parts:
            return
        _, hidden, head, metadata, *_ = inputs
        if isinstance(metadata, ForwardBatch):
            metadata = LogitsMetadata.from_forward_batch(metadata)
        parts, self._parts = self._parts, []
        for part in parts:
            rows = hidden[part.first : part.first + part.rows]
            logits = processor._get_logits(rows, head, metadata, use_logits_buffer=False)
            if self.measures:
                self._found.setdefault(part.score.request_id, []).append(_margins(part, logits))


def _margins(part: _Part, logits: Tensor) -> Tensor:
    positions = torch.arange(part.position, part.position + part.rows, device=logits.device)
    emitted = torch.tensor(part.score.tokens[part.position + 1 : part.position + 1 + part.rows])
    return margins(logits=logits, tokens=emitted.to(logits.device), positions=positions, choice=part.score.choice)


def is_score(request_id: str) -> bool:
    """Whether a request of this id scores another's answer."""
    return request_id.startswith(_PREFIX)
