"""Rank 0's side: sends the hidden states of every prefill chunk of a request for features to the HTTP process.

SGLang captures them (aux hidden states, and the last ones beside them). Its own way out would turn them into JSON lists
and drop every chunk but the last.
"""

from collections.abc import Iterator
from typing import Any

import zmq
from torch import Tensor

from sparktier.serving.engine.features.feature_rows import REQUEST_PREFIX, FeatureRows, frames
from sparktier.serving.engine.rank_options import FeatureOptions


class RowSender:
    """A socket to the HTTP process. Never waits: the HTTP process bounds how many requests are under way."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def send(self, request_id: str, rows: FeatureRows) -> None:
        """Queue a copy of `rows`; the caller may reuse their tensors."""
        self._socket.send_multipart(frames(request_id, rows))


def install(options: FeatureOptions) -> None:
    """Hook SGLang's worker and logits processor in this process."""
    from sglang.srt.layers.logits_processor import LogitsProcessor
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.runtime_context import get_parallel

    stock_forward, stock_init = TpModelWorker.forward_batch_generation, LogitsProcessor.__init__
    senders: list[RowSender] = []

    def forward_batch_generation(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = stock_forward(self, batch, *args, **kwargs)
        if batch is None or get_parallel().tp_rank != 0 or self.is_draft_worker or kwargs.get("is_verify"):
            return result
        for request_id, rows in prefilled(batch, result.logits_output):
            if not senders:
                senders.append(RowSender(options.endpoint))
            senders[0].send(request_id, rows)
        return result

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_init(self, *args, **kwargs)
        # SGLang sets this only where it captures without a draft; a drafting engine captures too.
        self.keep_last_hidden_states = True

    TpModelWorker.forward_batch_generation = forward_batch_generation
    LogitsProcessor.__init__ = init


def prefilled(batch: Any, output: Any) -> Iterator[tuple[str, FeatureRows]]:
    """Yield the id and rows of each request for features in the chunk that was just prefilled.

    Copies to the host at once: the tensors may be a graph's buffers, which the next forward pass rewrites.
    """
    if not batch.forward_mode.is_extend() or not any(req.rid.startswith(REQUEST_PREFIX) for req in batch.reqs):
        return
    captured: tuple[Tensor, Tensor] = output.hidden_states, output.last_hidden_states
    assert all(len(tensor) == sum(batch.extend_lens) for tensor in captured), "a row for every prefilled token"
    first = 0
    for req, start, length in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
        if req.rid.startswith(REQUEST_PREFIX):
            features, last_hidden = (tensor[first : first + length].cpu() for tensor in captured)
            yield req.rid, FeatureRows(start, features, last_hidden)
        first += length
