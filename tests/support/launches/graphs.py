"""The verify graphs that a worker has on a GPU, run without graphs."""

from typing import Any

from sparktier.serving.engine.graphs.verify_graphs import CHAIN, TREE, VerifyGraphs

MOST_REQUESTS = 32


class EagerGraph:
    """In the place of SGLang's graph runner, for any number of requests: its passes run without graphs."""

    max_bs = MOST_REQUESTS
    capture_bs = tuple(range(1, MOST_REQUESTS + 1))

    @staticmethod
    def _pad_to_bucket(requests: int, _buckets: Any) -> int:
        return requests

    @staticmethod
    def can_run_graph(_forward_batch: Any) -> bool:
        """No: a CPU has none."""
        return False


def graphs_of(worker: Any) -> VerifyGraphs:
    """The graphs that `worker` has on a GPU."""
    tree = worker.options.tree
    shapes = [(CHAIN, rows) for rows in worker.options.chain_rows(worker.gamma)]
    shapes += [] if tree is None else [(TREE, tree.rows)]
    return VerifyGraphs(worker.model_runner, dict.fromkeys(shapes, EagerGraph()))
