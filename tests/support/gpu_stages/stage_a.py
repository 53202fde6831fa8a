"""Stage A: what a launch costs, and what our kernels and captured tails take, eagerly and in graphs.

Needs torch, Triton and this checkout, nothing of SGLang. On a CPU the cells that have a form there run once, untimed.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparktier.kernels.draft_tree import DraftTree
from sparktier.kernels.expand import MarkovHead, Shape, expand_top
from sparktier.kernels.mask import ancestor_words, mask_byte_indptr, packed_mask
from sparktier.kernels.noise import draw
from sparktier.kernels.select import reachable, select_rows
from support.gpu_stages.results import Cell, Figures

VOCAB, RANK, TREE_ROWS = 151_936, 256, 12
SMALL_VOCAB, SMALL_RANK = 6000, 16
_LAUNCHES, _RUNS = 1000, 50
Step = Callable[[], Any]


def cells(dry_run: bool) -> list[Cell]:
    """Return the cells: launches first, then each part of a step by users."""
    users = (1, 2) if dry_run else (1, 16, 64)
    parts = ("tree tail", "chain tail", "winners", "walk", "mask", "draw")
    found: list[Cell] = [{"part": "launches"}]
    for part in parts:
        for number in users:
            found += [{"part": part, "users": number, "block": block} for block in ((5, 7) if "tail" in part else (5,))]
    return found


def measure(cell: Cell) -> Figures:
    """Return a cell's times; on a CPU only that it ran."""
    on_gpu = torch.cuda.is_available()
    if cell["part"] == "launches":
        return launch_costs() if on_gpu else {"ran": False, "why": "a CPU launches nothing"}
    steps = parts(torch.device("cuda" if on_gpu else "cpu"), users=cell["users"], block=cell["block"])
    if cell["part"] not in steps:
        return {"ran": False, "why": "a Triton kernel without a form on CPUs"}
    step = steps[cell["part"]]
    if not on_gpu:
        step()
        return {"ran": True}
    return times(step)


def launch_costs() -> Figures:
    """Host microseconds of an eager launch, and GPU microseconds of a node in a graph."""
    values = torch.zeros(1, device="cuda")

    def many() -> None:
        for _ in range(_LAUNCHES):
            values.add_(1)

    many()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    many()
    host_us = (time.perf_counter() - begun) * 1e6 / _LAUNCHES
    torch.cuda.synchronize()
    graph = captured(many)
    return {"eager_launch_us": host_us, "graph_node_us": _gpu_ms(graph.replay) * 1e3 / _LAUNCHES}


def times(step: Step) -> Figures:
    """Return ms of `step` as launched, of its launches on the host alone, and of a graph of it."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    eager_ms = _gpu_ms(step)
    begun = time.perf_counter()
    step()
    host_ms = (time.perf_counter() - begun) * 1e3
    torch.cuda.synchronize()
    return {"eager_ms": eager_ms, "host_ms": host_ms, "graph_ms": _gpu_ms(captured(step).replay)}


def captured(step: Step) -> Any:
    """Return a graph of `step`, run before on the stream that captures it."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _gpu_ms(step: Step) -> float:
    begun, ended = events()
    begun.record()
    for _ in range(_RUNS):
        step()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / _RUNS


def events() -> tuple[Any, Any]:
    """Return two events that tell the GPU's time between them."""
    begun: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return begun, torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def parts(device: torch.device, *, users: int, block: int) -> dict[str, Step]:
    """Return what a step does outside the models, in the engine's number format, for greedy users."""
    on_gpu = device.type == "cuda"
    vocab, rank, dtype = (VOCAB, RANK, torch.bfloat16) if on_gpu else (SMALL_VOCAB, SMALL_RANK, torch.float32)
    generator = torch.Generator(device=device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    head, logits = MarkovHead(random(vocab, rank), random(vocab, rank)), random(users, block, vocab)
    anchors = torch.arange(users, device=device)
    ones, budgets = torch.ones(users, device=device), torch.full((users,), TREE_ROWS, device=device)
    useful = torch.full((users,), block, device=device)

    def proposed(shape: Shape, rows: int) -> tuple[DraftTree, Tensor]:
        found = expand_top(
            anchors=anchors,
            block_logits=logits,
            head=head,
            temperatures=ones,
            shape=shape,
            edge_acceptance=lambda q, _depth: q,
            shortlist=256,
        )
        within = reachable(candidates=found, useful=useful)
        tree = select_rows(candidates=within, row_budgets=budgets.clamp(max=rows), width=rows).tree
        return tree, ancestor_words(tree=tree)

    tree, words = proposed(Shape(block, 4, 4), TREE_ROWS)
    prefix, queries = torch.full_like(budgets, 4096), budgets
    total = users * -(-TREE_ROWS * (4096 + TREE_ROWS) // 8)
    weights = torch.rand(users, vocab, generator=generator, device=device)
    found: dict[str, Step] = {
        "tree tail": lambda: proposed(Shape(block, 4, 4), TREE_ROWS),
        "chain tail": lambda: proposed(Shape(block, 1, 1), block + 1),
        "mask": lambda: packed_mask(
            words=words,
            row_counts=tree.row_counts,
            prefix_lens=prefix,
            query_lens=queries,
            indptr=mask_byte_indptr(prefix_lens=prefix, query_lens=queries),
            total_bytes=total,
        ),
        "draw": lambda: draw(weights=weights, seeds=anchors, positions=anchors),
    }
    return found | (_triton_parts(tree, random(users * TREE_ROWS, vocab), block) if on_gpu else {})


def _triton_parts(tree: DraftTree, logits: Tensor, block: int) -> dict[str, Step]:
    from sparktier.kernels.accept_triton import walk_matching_triton
    from sparktier.kernels.greedy_triton import greedy_winners_triton

    first = torch.arange(len(tree.tokens), device=logits.device) * TREE_ROWS
    winners = greedy_winners_triton(logits=logits)
    return {
        "winners": lambda: greedy_winners_triton(logits=logits),
        "walk": lambda: walk_matching_triton(tree=tree, winners=winners, first=first, max_depth=block),
    }
