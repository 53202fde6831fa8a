"""CUDA graphs of verify passes by requests and rows of a request, beside SGLang's, which are by rows in all.

All requests of such a pass have the same number of rows, so a step without drafts verifies one row a request, and
attention knows how many rows share a request's keys. SGLang's buckets serve passes whose counts differ much.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.speculative.dspark_components.dspark_planner import ragged_capture_max_slots, ragged_capture_num_tokens
from sglang.srt.speculative.ragged_verify import round_up_grid

CHAIN, TREE = "sparktier_chain", "sparktier_tree"


@dataclass(frozen=True)
class OneKind:
    """Has each number of requests captured once. Source of the contract: SGLang's `attention/graph_variants.py`."""

    kind: str

    @property
    def capture_labels(self) -> tuple[str, ...]:
        """The one kind."""
        return (self.kind,)

    def select(self, _forward_batch: Any) -> str:
        """Return the one kind."""
        return self.kind


class VerifyGraph(NamedTuple):
    """Graphs of `rows` rows a request, for up to `runner.max_bs` requests; is_tree: rows may branch."""

    runner: Any
    rows: int
    is_tree: bool


class VerifyGraphs:
    """The graphs of a target, and the choice among them."""

    def __init__(self, model_runner: Any, captured: Mapping[tuple[str, int], Any]) -> None:
        """`captured`: SGLang's graph runners by kind and rows of a request."""
        self._model_runner = model_runner
        self._graphs = [VerifyGraph(runner, rows, kind == TREE) for (kind, rows), runner in captured.items()]

    def choose(self, counts: Sequence[int], *, branching: bool) -> VerifyGraph | None:
        """Return the graph for a pass over `counts` rows of each request; None where a bucket of SGLang's is smaller.

        What a request lacks of the graph's rows becomes dead rows. They cost as live ones do, so the fewest rows win;
        among equals, the graph whose requests have equal rows, which attention reads in larger tiles.
        """
        most, requests = max(counts), len(counts)
        is_tree = branching and most > 1
        fitting = (graph for graph in self._graphs if graph.is_tree == is_tree and graph.rows >= most)
        graph = min(fitting, key=lambda graph: graph.rows, default=None)
        if graph is None or requests > graph.runner.max_bs:
            return None
        rows = graph.runner._pad_to_bucket(requests, graph.runner.capture_bs) * graph.rows
        bucket = bucket_rows(self._model_runner, requests=requests, rows=sum(counts))
        return graph if bucket is None or rows <= bucket else None

    @contextmanager
    def replaying(self, graph: VerifyGraph) -> Iterator[None]:
        """Let SGLang's passes in the body find `graph` in the place of its own."""
        stock = self._model_runner.decode_cuda_graph_runner
        self._model_runner.decode_cuda_graph_runner = graph.runner
        try:
            yield
        finally:
            self._model_runner.decode_cuda_graph_runner = stock


def bucket_rows(model_runner: Any, *, requests: int, rows: int) -> int | None:
    """Return how many rows SGLang's graph for `rows` of `requests` in all has; None where it has none.

    Source of the conditions: `_can_run_ragged_verify_graph` of SGLang's `decode_cuda_graph_runner.py`.
    """
    tiers = ragged_capture_num_tokens(model_runner=model_runner)
    if tiers is None or not model_runner.attn_backend.supports_ragged_verify_graph or rows > tiers[-1]:
        return None
    tier: int = round_up_grid(rows, tiers)
    return tier if requests <= min(tier, ragged_capture_max_slots(model_runner=model_runner)) else None


def capture(model_runner: Any, *, chains: Sequence[int], tree: int | None) -> VerifyGraphs | None:
    """Capture graphs of each of `chains` rows a request, and of `tree` rows that may branch; None without SGLang's own.

    Only for attention whose buffers several runners may share. The widest come first: narrower ones reuse their memory.
    """
    stock = model_runner.decode_cuda_graph_runner
    attention = model_runner.attn_backend
    if stock is None or not stock.ragged_verify_mode or not getattr(attention, "shares_graph_buffers", False):
        return None
    shapes = {(CHAIN, rows) for rows in chains} | ({(TREE, tree)} if tree is not None else set())
    captured = {}
    for kind, rows in sorted(shapes, key=lambda shape: shape[1], reverse=True):
        with _capturing(kind):
            captured[kind, rows] = type(stock)(model_runner, speculative_num_draft_tokens=rows)
    return VerifyGraphs(model_runner, captured)


@contextmanager
def _capturing(kind: str) -> Iterator[None]:
    """Let SGLang's runner, made in the body, capture passes of `kind` with equal rows."""
    module = decode_cuda_graph_runner
    variants, by_rows = module.create_attention_graph_variants, module.ragged_verify_compact_graphs_enabled
    module.create_attention_graph_variants = lambda _config: OneKind(kind)
    module.ragged_verify_compact_graphs_enabled = lambda _algorithm: False
    try:
        yield
    finally:
        module.create_attention_graph_variants, module.ragged_verify_compact_graphs_enabled = variants, by_rows
