"""What SGLang's worker is told while it is made: rows to reserve for a verify pass, and to need no confidence head."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from sglang.srt.models import dspark
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.dspark_components import dspark_worker_v2
from sglang.srt.speculative.dspark_components.dspark_config import parse_dspark_draft_config
from sglang.srt.speculative.dspark_components.dspark_planner import DSparkVerifyPlanner

from sparktier.serving.engine.rank_options import LadderOptions

logger = logging.getLogger(__name__)


@contextmanager
def wide_window(options: LadderOptions) -> Iterator[None]:
    """Let SGLang's worker, made in the body, verify more rows than its block plus one, to which it ties the window.

    The length of the block is the options' where the checkpoint's is no shorter.
    """
    stock = dspark_worker_v2.resolve_runtime_config

    def resolve(*, speculative_num_draft_tokens: int | None, draft_hf_config: Any, **facts: Any) -> Any:
        trained = parse_dspark_draft_config(draft_hf_config=draft_hf_config).resolve_gamma()
        block = options.block(trained)
        if trained is not None and options.block_tokens is not None and options.block_tokens > trained:
            logger.warning(
                "speculation.block_tokens %d is cut to the draft's block of %d", options.block_tokens, trained
            )
        rows = None if block is None else block + 1
        config = stock(speculative_num_draft_tokens=rows, draft_hf_config=draft_hf_config, **facts)
        return type(config)(config.gamma, options.width(config.gamma), config.mask_token_id)

    dspark_worker_v2.resolve_runtime_config = resolve
    try:
        yield
    finally:
        dspark_worker_v2.resolve_runtime_config = stock


class HeadlessPlanner(DSparkVerifyPlanner):
    """What SGLang's worker asks about graphs and modes.

    Where rows differ by request (GPUs) SGLang's own refuses a draft without a confidence head, which it would budget
    rows by. Our rows come from the plan and no confidence is ever computed, so any head will do.

    is_compact_mode: False beside other attention groups. SGLang refuses graphs of ragged rows there, which its idle
    groups can't join; ours do (group_pass.py).
    """

    @property
    def is_compact_mode(self) -> bool:
        return super().is_compact_mode and not get_parallel().attn_dp_enabled

    def __init__(self, *, draft_model: Any, **facts: Any) -> None:
        head = getattr(draft_model, "confidence_head", None) or SimpleNamespace()
        super().__init__(draft_model=SimpleNamespace(confidence_head=head), **facts)


@contextmanager
def headless() -> Iterator[None]:
    """Let SGLang's worker, made in the body, take a draft without a confidence head, and leave out that of others.

    On GPUs alone SGLang would build the head and insist on its weights.
    """
    planner, head = dspark_worker_v2.DSparkVerifyPlanner, dspark.build_confidence_head
    dspark_worker_v2.DSparkVerifyPlanner = HeadlessPlanner
    dspark.build_confidence_head = lambda _config: None
    try:
        yield
    finally:
        dspark_worker_v2.DSparkVerifyPlanner, dspark.build_confidence_head = planner, head
