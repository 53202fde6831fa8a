"""What must be right on a GPU node before it is trusted: kernels, tree attention, and the operator's own model.

Kernels against their oracles, tree attention against plain attention with the oracle's mask, kernel times, then the
same tokens on every rung of the operator's model, and the speed of every rung. One line per check. What of this has run
on a GPU is in docs/log.md.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparktier.configs.loading.loader import load_settings
from sparktier.configs.plan_keys import Rung
from sparktier.drafter.data.prompts import read_prompts
from sparktier.kernels.expand import MarkovHead, Shape, expand_top
from sparktier.kernels.flashinfer_mask import mask_bytes, write_tree_mask
from sparktier.kernels.mask import ancestor_words, mask_byte_indptr, packed_mask
from sparktier.kernels.noise import draw
from sparktier.serving.bench.measured_replica import MeasuredReplica, deployed
from sparktier.serving.bench.measurements import RUNGS, rungs_of
from support.dense_mask import dense_mask
from support.random_trees import random_tree
from support.tree_verify_attention import AttentionShape, PageBuffers, TreeVerifyAttention

TESTS = Path(__file__).resolve().parents[2]
BATCH, ROWS, VOCAB, RANK = 32, 32, 151_936, 256
HEADS, KV_HEADS, HEAD_DIM = 32, 4, 128
TOLERANCE = 2e-2  # bf16 attention against float32
ANSWERS, TIE_NATS = 16, 0.5  # bf16 logits between 16 and 32 are an eighth apart
ANSWER_TOKENS, TOP_LOGPROBS = 64, 5
Outcome = tuple[bool, str]


class Choice(NamedTuple):
    """A token of an answer, and the log probabilities of the likeliest tokens at its position, itself among them."""

    token: str
    logprobs: Mapping[str, float]


def of_node(config: Path | None, prompts: Path | None) -> int:
    """Run the checks, those of a model too where one is named; return the exit status."""
    checks: list[tuple[str, Callable[[], Outcome]]] = [
        ("device", device),
        ("kernels equal their oracles", kernels),
        ("tree attention equals plain attention", tree_attention),
        ("kernel times", kernel_times),
    ]
    if config and prompts:
        checks.append(("tokens are the same on every rung", lambda: exactness(config, prompts)))
        checks.append(("speed of every rung", lambda: speed(config, prompts)))
    return report(checks)


def report(checks: list[tuple[str, Callable[[], Outcome]]]) -> int:
    """Run the checks in order, a line each; a check that raises has failed. Returns the exit status."""
    failed = 0
    for name, check in checks:
        try:
            good, found = check()
        except Exception as error:  # the next checks still tell something
            good, found = False, f"{type(error).__name__}: {error}"
        failed += not good
        sys.stdout.write(f"{'ok    ' if good else 'FAILED'}  {name}: {found}\n")
        sys.stdout.flush()
    return 1 if failed else 0


def device() -> Outcome:
    """Name, capability and memory of the first GPU; our kernels are compiled for 8.0 and later."""
    facts = torch.cuda.get_device_properties(0)
    found = (
        f"{facts.name}, sm_{facts.major}{facts.minor}, {facts.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"
    )
    return facts.major >= 8, found


def kernels() -> Outcome:
    """The Triton kernels, compiled, on the cases that the suite runs in the interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "kernels/triton_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0, (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]


def tree_attention() -> Outcome:
    """Largest difference between FlashInfer with our mask and float32 attention with the oracle's dense mask."""
    worst = max(_attention_difference(chance) for chance in range(5))
    return worst < TOLERANCE, f"largest difference {worst:.2e} (at most {TOLERANCE:g})"


def _attention_difference(chance: int) -> float:
    generator = torch.Generator().manual_seed(chance)
    tree = random_tree(batch=4, rows=ROWS, vocab=50, generator=generator)
    prefix = torch.randint(1, 500, (4,), generator=generator)
    counts = tree.row_counts
    lengths = prefix + counts
    pages = PageBuffers(
        torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(),
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        torch.arange(int(lengths.sum()), dtype=torch.int32),
        torch.ones(4, dtype=torch.int32),
    )
    q = torch.randn(int(counts.sum()), HEADS, HEAD_DIM, generator=generator).to("cuda", torch.bfloat16)
    shape = (int(lengths.sum()), 1, KV_HEADS, HEAD_DIM)
    k, v = (torch.randn(shape, generator=generator).to("cuda", torch.bfloat16) for _ in range(2))
    attention = TreeVerifyAttention(
        workspace=torch.empty(128 << 20, dtype=torch.uint8, device="cuda"),
        batch=4,
        max_pages=len(pages.kv_indices),
        max_mask_bytes=mask_bytes(prefix_lens=prefix.tolist(), query_lens=counts.tolist()),
    )
    heads = AttentionShape(HEADS, KV_HEADS, HEAD_DIM, 1, q.dtype, k.dtype, HEAD_DIM**-0.5)
    attention.plan(pages=pages, shape=heads)
    words = ancestor_words(tree=tree)
    write_tree_mask(
        buffers=attention.mask,
        words=words.cuda(),
        row_counts=counts.cuda(),
        prefix_lens=prefix.cuda(),
        query_lens=counts.cuda(),
    )
    out = torch.empty_like(q)
    attention.run(q=q, k_cache=k, v_cache=v, out=out)
    masks = dense_mask(words=words, row_counts=counts, prefix_lens=prefix, width=int(lengths.max()) + ROWS)
    differences = []
    for i, (start, end) in enumerate(zip(pages.qo_indptr.tolist(), pages.qo_indptr.tolist()[1:], strict=False)):
        first, last = int(pages.kv_indptr[i]), int(pages.kv_indptr[i + 1])
        query, key, value = (
            part.float().transpose(0, 1) for part in (q[start:end], k[first:last, 0], v[first:last, 0])
        )
        mask = masks[i, : end - start, : last - first].cuda()
        expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        differences.append(float((out[start:end].float() - expected.transpose(0, 1)).abs().max()))
    return max(differences)


def kernel_times() -> Outcome:
    """Median milliseconds of drafting a tree and of its mask and draws, for 32 requests of 32 rows."""
    from triton.testing import do_bench

    times = {name: do_bench(step, return_mode="median") for name, step in kernel_steps("cuda").items()}
    return True, ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items())


def kernel_steps(
    where: str, *, batch: int = BATCH, rows: int = ROWS, vocab: int = VOCAB
) -> dict[str, Callable[[], object]]:
    """What a round does outside the models, on inputs of a large target's size."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, 7, vocab, generator=generator).to(where)
    head = MarkovHead(*(torch.randn(vocab, RANK, generator=generator).to(where) for _ in range(2)))
    tree = type(made := random_tree(batch=batch, rows=rows, vocab=50, generator=generator))(
        *(t.to(where) for t in made)
    )
    prefix = torch.randint(100, 4000, (batch,), generator=generator).to(where)
    queries = torch.full_like(prefix, rows)
    size = mask_bytes(prefix_lens=prefix.tolist(), query_lens=[rows] * batch)
    weights, each = torch.rand(batch, vocab, generator=generator).to(where), torch.arange(batch, device=where)
    return {
        "expansion": lambda: expand_top(
            anchors=each,
            block_logits=logits,
            head=head,
            temperatures=torch.ones(batch, device=where),
            shape=Shape(7, 4, 4),
            edge_acceptance=lambda q, _depth: q,
            shortlist=256,
        ),
        "mask": lambda: packed_mask(
            words=ancestor_words(tree=tree),
            row_counts=tree.row_counts,
            prefix_lens=prefix,
            query_lens=queries,
            indptr=mask_byte_indptr(prefix_lens=prefix, query_lens=queries),
            total_bytes=size,
        ),
        "draw": lambda: draw(weights=weights, seeds=each, positions=each),
    }


def exactness(config: Path, prompts: Path) -> Outcome:
    """Greedy answers of every rung, alone and 8 at a time, against `off` alone: they may part at ties only.

    In bf16 the last bits of a logit depend on how many rows a pass has, so either of two tokens that nearly tie may
    come and the answers go apart from there, drafted or not. A token wrongly accepted lies nats behind.
    """
    texts = [prompt.turns[0] for prompt in read_prompts(prompts)[:ANSWERS]]
    gaps: dict[str, list[float]] = {}
    with deployed(config, []) as replica:
        alone = _answers(replica, Rung.OFF, texts, users=1)
        for rung in rungs_of(load_settings(config).speculation.method):
            found = [_answers(replica, rung, texts, users=users) for users in (1, 8)]
            gaps[RUNGS[rung][1]] = [gap for answers in found for gap in partings(alone, answers)]
    good = all(gap <= TIE_NATS for each in gaps.values() for gap in each)
    said = (f"{name} {len(each)} of {2 * len(texts)}, {max(each, default=0.0):.2f}" for name, each in gaps.items())
    return good, f"answers that part from off alone, by at most so many nats ({TIE_NATS:g} is a tie): {'; '.join(said)}"


def _answers(replica: MeasuredReplica, rung: Rung, texts: list[str], *, users: int) -> list[list[Choice]]:
    replica.set_plan(rung=rung, rows=0)
    with ThreadPoolExecutor(users) as pool:
        return list(pool.map(lambda text: _greedy_choices(replica, text), texts))


def _greedy_choices(replica: MeasuredReplica, prompt: str) -> list[Choice]:
    completion = replica.chat(
        prompt, max_tokens=ANSWER_TOKENS, temperature=0.0, logprobs=True, top_logprobs=TOP_LOGPROBS, ignore_eos=True
    )
    tokens = completion["choices"][0]["logprobs"]["content"]
    return [Choice(one["token"], {top["token"]: top["logprob"] for top in one["top_logprobs"]}) for one in tokens]


def partings(expected: Sequence[list[Choice]], found: Sequence[list[Choice]]) -> list[float]:
    """Return how far the first other token lies behind the expected one, in nats, for each answer that differs."""
    gaps = []
    for ours, theirs in zip(expected, found, strict=True):
        for own, other in zip(ours, theirs, strict=True):
            if own.token != other.token:
                gaps.append(own.logprobs[own.token] - own.logprobs.get(other.token, -math.inf))
                break
    return gaps


def speed(config: Path, prompts: Path) -> Outcome:
    """`sparktier bench speculation` at batch 1, 4 and 16; its table is printed, its report kept in out/."""
    command = [sys.executable, "-m", "sparktier.serving.cli.main", "bench", "speculation", str(config)]
    batches = [word for batch in (1, 4, 16) for word in ("--batch", str(batch))]
    kept = ["--prompts", str(prompts), "--json", "out/gpu-check.json"]
    done = subprocess.run([*command, *batches, *kept], check=False)
    return done.returncode == 0, "out/gpu-check.json, out/gpu-check.png"
