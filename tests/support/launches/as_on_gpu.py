"""Has a rank on a CPU step as one on a GPU does: graphs run eagerly, and Triton's walk is replaced by its oracle."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sparktier.kernels import accept_triton
from sparktier.serving.engine.speculation import accept_step
from sparktier.serving.engine.speculation.accept_step import MatchWalk
from sparktier.serving.engine.speculation.draft_step import Selected
from sparktier.serving.engine.speculation.draft_tail import VARIANT
from support.launches.fake_step import capturing
from support.launches.graphs import MOST_REQUESTS, graphs_of
from support.oracles.winners_walk import walk_of_winners


@contextmanager
def as_on_gpu(worker: Any) -> Iterator[None]:
    """Rows are known before the draft has run and padded to equal numbers, the tail is part of the draft, and all rows
    are read at once."""
    proposer, drafter = worker._proposer, worker.decode_step.drafter
    plain = worker.decode_step
    worker.decode_step = replace(plain, graphs=graphs_of(worker))
    stock = proposer._run_forward

    def forward(*, draft_sampler: Any = None, sampling_info: Any = None, **given: Any) -> Any:
        done = stock(**given)
        if draft_sampler is None:
            return done
        draft_sampler.stage_sampling_params(bs=given["bs"], sampling_info=sampling_info)
        with capturing(getattr(worker._draft_block_spec_info, VARIANT)):
            draft_sampler(done.raw_hidden, done.draft_block_ids.flatten())
        return SimpleNamespace(raw_hidden=done.raw_hidden, can_run_graph=True)

    drafter.capture_tail(most_requests=MOST_REQUESTS, tree=worker.options.tree, paced=worker.pacer is not None)
    with (
        mock.patch.object(proposer, "_run_forward", forward),
        mock.patch.object(Selected, "verified", lambda selected, _tree: selected.most_rows),
        mock.patch.object(accept_step, "match_walk", _walk),
        mock.patch.object(accept_triton, "walk_matching_triton", walk_of_winners),
    ):
        yield
    drafter._tail, worker.decode_step = None, plain


def _walk(*, penalised: bool, **_: bool) -> MatchWalk:
    return MatchWalk.BY_LEVEL if penalised else MatchWalk.KERNEL
