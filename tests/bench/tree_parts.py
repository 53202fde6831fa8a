"""The parts of a tree round outside the model forwards, each to be timed alone."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sparktier.kernels.accept_tree import RowReader, TreeAcceptance, walk_matching
from sparktier.kernels.draft_tree import compaction_plan
from sparktier.kernels.expand import Candidates, MarkovHead, Shape, expand_top
from sparktier.kernels.mask import ancestor_words
from sparktier.kernels.noise import draw
from sparktier.kernels.select import Selection, select_rows
from sparktier.kernels.target_probs import SamplingRows, greedy_tokens, target_probs


class Round:
    """Inputs of one round; every step is a method, so that each can be timed alone."""

    def __init__(
        self, *, batch: int, rows: int, vocab: int, rank: int, shape: Shape, seed: int, shortlist: int | None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape, self.rows, self.each, self.shortlist = shape, rows, torch.arange(batch), shortlist
        self.anchors = torch.randint(vocab, (batch,), generator=generator)
        self.block_logits = torch.randn(batch, shape.depth, vocab, generator=generator).bfloat16()
        self.head = MarkovHead(*(torch.randn(vocab, rank, generator=generator).bfloat16() for _ in range(2)))
        self.temperatures = torch.ones(batch)
        self.budgets = torch.full((batch,), rows)
        self.prefix_lens = torch.randint(100, 8000, (batch,), generator=generator)
        self.logits = torch.randn(batch * rows, vocab, generator=generator)
        self.slots = torch.arange(batch * rows).view(batch, rows)

    def expand(self) -> Candidates:
        return expand_top(
            anchors=self.anchors,
            block_logits=self.block_logits,
            head=self.head,
            temperatures=self.temperatures,
            shape=self.shape,
            edge_acceptance=lambda q, depth: q.sqrt(),
            shortlist=self.shortlist,
        )

    def build(self, candidates: Candidates) -> Selection:
        selection = select_rows(candidates=candidates, row_budgets=self.budgets, width=self.rows)
        ancestor_words(tree=selection.tree)
        return selection

    def agreeable(self, selection: Selection) -> None:
        """Let the target like each row's first child, so that walks go all the way down."""
        tree = selection.tree
        for row in range(self.rows - 1, 0, -1):
            drafted = tree.parents[:, row] >= 0
            parents = self._packed(self.each[drafted], tree.parents[drafted, row])
            self.logits[parents, tree.tokens[drafted, row]] += 30.0

    def accept_greedy(self, selection: Selection) -> TreeAcceptance:
        return self._walk(selection, lambda *at: greedy_tokens(logits=self._read(*at)))

    def accept_sampled(self, selection: Selection) -> TreeAcceptance:
        sampling = SamplingRows(temperatures=self.temperatures)

        def choose(requests: Tensor, rows: Tensor) -> Tensor:
            p = target_probs(logits=self._read(requests, rows), sampling=sampling.take(requests))
            positions = self.prefix_lens[requests] + selection.tree.depths[requests, rows]
            return draw(weights=p, seeds=requests, positions=positions)

        return self._walk(selection, choose)

    def _packed(self, requests: Tensor, rows: Tensor) -> Tensor:
        return requests * self.rows + rows

    def _read(self, requests: Tensor, rows: Tensor) -> Tensor:
        return self.logits.index_select(0, self._packed(requests, rows))

    def _walk(self, selection: Selection, choose: RowReader) -> TreeAcceptance:
        return walk_matching(tree=selection.tree, choose=choose, max_depth=self.shape.depth)

    def compact(self, accepted: TreeAcceptance) -> None:
        compaction_plan(path=accepted.path, slots=self.slots)


def timed_ms(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and quartile spread of a step's wall time, and the median of its CPU time over all threads."""
    walls, cpus = [], []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((time.process_time() - cpu) * 1e3)
    low, middle, high = statistics.quantiles(walls[1:], n=4)
    cpu_ms = statistics.median(cpus[1:])
    return {"median_ms": round(middle, 2), "spread_ms": round(high - low, 2), "cpu_ms": round(cpu_ms, 2)}


def parts_ms(work: Round, repeats: int) -> dict[str, dict[str, float]]:
    """Time each part of a round with targets that like what was drafted."""
    candidates = work.expand()
    selection = work.build(candidates)
    work.agreeable(selection)
    accepted = work.accept_greedy(selection)
    parts: dict[str, Callable[[], object]] = {
        "expand": work.expand,
        "select_mask_positions": lambda: work.build(candidates),
        "accept_greedy": lambda: work.accept_greedy(selection),
        "accept_sampled": lambda: work.accept_sampled(selection),
        "compact": lambda: work.compact(accepted),
    }
    return {name: timed_ms(part, repeats) for name, part in parts.items()}
