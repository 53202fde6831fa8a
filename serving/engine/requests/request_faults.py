"""Ends a request that gets no token in a step, or whose own part of a step raised an error; the other requests go on.

A row of logits is silent if its maximum is not finite: its grammar allows no token, or the numbers broke. The sampler
then yields an arbitrary token in range and marks the row. When the step's result reaches the host, a marked request
keeps the drafts accepted before that row and ends; it gets an error unless those drafts already end it.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.utils.common import async_d2h
from torch import Tensor

from sparktier.configs.errors import REQUEST_ENDED
from sparktier.kernels.target_probs import NO_TOKEN
from sparktier.serving.engine.requests.grammar_faults import allows_nothing

logger = logging.getLogger(__name__)
_MARK = "sparktier_silent"
_FAULT = "sparktier_fault"
_NAMED_REQUESTS = 6


def mark(logits_output: Any, silent: Tensor) -> None:
    """Note on a step's `logits_output` which requests got no token: `silent` [batch] bool. Copies asynchronously."""
    setattr(logits_output, _MARK, async_d2h(silent))


def is_marked(logits_output: Any) -> bool:
    """Return whether a sampler has already chosen tokens from `logits_output`."""
    return getattr(logits_output, _MARK, None) is not None


def install() -> None:
    """Hook SGLang's samplers, the processing of results, and the scheduler's steps in this process."""
    _replace(Sampler, "forward", _marking)
    _replace(Sampler, "_sync_token_ids_across_tp", _agreeing)
    for name in ("process_batch_result_prefill", "process_batch_result_decode"):
        _replace(SchedulerBatchResultProcessor, name, _ending)
    _replace(SchedulerBatchResultProcessor, "advance_grammar_fsm", _ending_before_grammars)
    _replace(SchedulerBatchResultProcessor, "_accept_grammar_tokens", _unless_silent)
    _replace(SchedulerBatchResultProcessor, "_apply_prefill_grammar", _unless_silent_in_prefill)
    _replace(Req, "update_finish_state", _ending_faulty)
    for name in ("run_batch", "process_batch_result"):
        _replace(Scheduler, name, _naming_requests)


def _replace(owner: type, name: str, wrapped: Callable[[Any], Any]) -> None:
    stock = getattr(owner, name)
    setattr(owner, name, functools.wraps(stock)(wrapped(stock)))


def _marking(stock: Any) -> Any:
    def forward(self: Any, logits_output: Any, *args: Any, **kwargs: Any) -> Tensor:
        logits = logits_output.next_token_logits
        self.silent = ~logits.amax(dim=-1).isfinite()
        if logits.device.type != "cpu" or self.silent.any():  # on a GPU `any` would wait for the device
            logits.masked_fill_(self.silent.unsqueeze(1), 0.0)
        tokens: Tensor = stock(self, logits_output, *args, **kwargs)
        mark(logits_output, self.silent)
        return tokens

    return forward


def _agreeing(stock: Any) -> Any:
    def sync(self: Any, tokens: Tensor, sampling_info: Any) -> None:
        # SGLang may take the minimum token over all ranks; a rank without a token then decides for all.
        tokens.masked_fill_(self.silent, NO_TOKEN)
        stock(self, tokens, sampling_info)
        self.silent = tokens < 0
        tokens.clamp_(min=0)

    return sync


def _ending(stock: Any) -> Any:
    """Wrap `stock` (a step's batch, then its result) so that silent requests end first."""

    def process(self: Any, batch: Any, result: Any) -> Any:
        end_silent(batch, result)
        return stock(self, batch, result)

    return process


def _ending_before_grammars(stock: Any) -> Any:
    def advance(self: Any, result: Any, batch: Any) -> None:
        end_silent(batch, result)
        stock(self, result, batch)

    return advance


def end_silent(batch: Any, result: Any) -> None:
    """End the requests of `batch` that `result` marks as silent; a second call with the same result does nothing.

    Drafts accepted before the silent row are kept: plain decoding would have emitted them, and they may end the answer.
    """
    silent = getattr(getattr(result, "logits_output", None), _MARK, None)
    if silent is None:
        return
    if result.copy_done is not None:
        result.copy_done.synchronize()
    setattr(result.logits_output, _MARK, None)
    for place, is_silent in enumerate(silent.tolist()):
        request = batch.reqs[place]
        if is_silent and not (request.finished() or request.is_retracted or request.inflight_middle_chunks > 0):
            accepted = 0 if result.accept_lens is None else int(result.accept_lens[place]) - 1
            setattr(request, _FAULT, _Fault(accepted, len(request.output_ids) + accepted))
            # The request's KV may hold the same broken numbers.
            request.skip_radix_cache_insert = True
            if accepted:
                # The last token is arbitrary. Cloned, because the device may still use the tensor.
                result.accept_lens = result.accept_lens.clone()
                result.accept_lens[place] = accepted


@dataclass(frozen=True)
class _Fault:
    """A request that ends in this step: drafts that the step accepted, and tokens that the request then has."""

    accepted: int
    tokens: int


def _fault_of(request: Any) -> _Fault | None:
    fault: _Fault | None = getattr(request, _FAULT, None)
    return fault


def _ending_faulty(stock: Any) -> Any:
    """Wrap SGLang's check whether a request has ended so that it also ends requests with a fault."""

    def update_finish_state(self: Any, new_accepted_len: int = 1) -> None:
        fault = _fault_of(self)
        try:
            if fault is None or fault.accepted or self.to_finish is not None:
                stock(self, new_accepted_len)
        except Exception as error:
            logger.exception("checking whether request %s has ended", self.rid)
            reason = f"checking whether it has ended raised {type(error).__name__}."
            _abort(self, reason, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")
            stock(self, new_accepted_len)
        if fault is not None and not self.finished():
            _declare(self, fault)
            stock(self, new_accepted_len)

    return update_finish_state


def _declare(request: Any, fault: _Fault) -> None:
    after = f"after {fault.tokens} tokens"
    if request.grammar is not None and allows_nothing(request.grammar, vocab_size=request.vocab_size):
        _abort(request, f"its grammar allows no token {after}, and no end.", HTTPStatus.BAD_REQUEST, "BadRequestError")
        return
    reason = f"the model's logits are not finite {after}. Penalties or biases this strong can do it."
    _abort(request, reason, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")


def _abort(request: Any, reason: str, status: HTTPStatus, kind: str) -> None:
    logger.error("%s%s Its id is %s.", REQUEST_ENDED, reason, request.rid)
    request.to_finish = FINISH_ABORT(REQUEST_ENDED + reason, status, kind)


def _unless_silent(stock: Any) -> Any:
    def accept(self: Any, req: Any, tokens: Any) -> list[int]:
        """Accept nothing for a request that got no token in this step."""
        fault = _fault_of(req)
        if fault is not None and not fault.accepted:
            return []
        accepted: list[int] = stock(self, req, tokens)
        return accepted

    return accept


def _unless_silent_in_prefill(stock: Any) -> Any:
    def apply(self: Any, *, req: Any, next_token_id: int, already_advanced: bool = False) -> None:
        silent = _fault_of(req) is not None
        stock(self, req=req, next_token_id=next_token_id, already_advanced=already_advanced or silent)

    return apply


def _naming_requests(stock: Any) -> Any:
    def step(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return stock(self, batch, *args, **kwargs)
        except Exception:
            logger.error("sparktier: %s failed. %s", stock.__name__, _names(batch))
            raise

    return step


def _names(batch: Any) -> str:
    """Return the ids of a step's requests for the log, which ends with them when the process dies."""
    ids = [request.rid for request in batch.reqs]
    more = f" and {len(ids) - _NAMED_REQUESTS} more" if len(ids) > _NAMED_REQUESTS else ""
    return f"Requests in the step: {', '.join(ids[:_NAMED_REQUESTS])}{more}."
