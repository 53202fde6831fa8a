"""The algorithm as SGLang's registry knows it: a DSpark family member with our worker.

Answers what SGLang asks of an algorithm. SGLang 0.5.23's base class lacks three of the methods that its scheduler
calls, so they stand here.
"""

from typing import Any

from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from sparktier.configs.errors import ArtifactError
from sparktier.serving.engine.rank_options import ALGORITHM, DEFAULT_RUNNING_REQUESTS, ladder_options


class SparktierAlgorithm(CustomSpecAlgo):
    """Source of the contract: `sglang/srt/speculative/spec_registry.py` and `spec_info.py`.

    draft_rows: tokens of a request in a draft's pass, known once the worker has loaded it.
    """

    draft_rows: int | None = None

    def get_num_tokens_per_req_for_target_verify(self, num_draft_tokens: int, is_draft_worker: bool) -> int:
        """Return the rows of a request that a model's graphs are captured for."""
        return self.draft_rows or num_draft_tokens if is_draft_worker else num_draft_tokens

    def is_dspark(self) -> bool:
        """True: feature capture, the draft's KV pool and the step input key on it."""
        return True

    def is_dflash_family(self) -> bool:
        """True: see `is_dspark`."""
        return True

    def supports_target_verify_for_draft(self) -> bool:
        """True: the draft block runs as a verify pass."""
        return True

    def supports_ragged_verify(self) -> bool:
        """True: rows differ by request, so SGLang captures its compact verify graphs where it has graphs."""
        return True

    def supports_prefill_shared_read_done(self) -> bool:
        """True: the target's prefill is the last to read shared tables."""
        return True

    def need_topk(self) -> bool:
        """False: drafts are not kept between steps."""
        return False

    def carries_draft_hidden_states(self) -> bool:
        """False: features go into the draft's KV at once."""
        return False

    def create_future_map(
        self, device: Any, req_to_token_pool: Any, needs_cpu_seq_lens: bool = True, needs_confidence_relay: bool = False
    ) -> Any:
        """Return SGLang's relay of lengths between overlapped steps."""
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay)

    def handle_server_args(self, server_args: Any) -> None:
        """Fix what a block drafter needs; the settings may name a shorter block than the checkpoint's."""
        server_args.speculative_num_steps = 1
        server_args.speculative_eagle_topk = 1
        if server_args.max_running_requests is None:
            # As SGLang does for all its own methods but this registry's (speculative_hook.py).
            server_args.max_running_requests = DEFAULT_RUNNING_REQUESTS
        options = ladder_options()
        block = options.block(_trained_block(server_args) if options.has_draft else None)
        if block is None:
            raise ArtifactError(
                "speculation.draft_path: the draft's config.json must name its block_size (found none). "
                "Add it, or set speculation.block_tokens."
            )
        server_args.speculative_num_draft_tokens = options.width(block)


def _trained_block(server_args: Any) -> int | None:
    from sglang.srt.speculative.dspark_components.dspark_config import read_draft_checkpoint_config

    trained: int | None = read_draft_checkpoint_config(server_args=server_args).resolve_gamma()
    return trained


def register() -> None:
    """Make the algorithm known to SGLang under ALGORITHM, and give its own DSPARK our worker; once a process."""

    def worker_class(server_args: Any) -> type:
        if not ladder_options().has_draft:
            from sparktier.serving.engine.lookup.lookup_worker import LookupWorker

            return LookupWorker
        from sparktier.serving.engine.speculation.worker import LadderWorker

        return LadderWorker

    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=SparktierAlgorithm)(worker_class)

    stock = SpeculativeAlgorithm.create_worker

    def create_worker(self: Any, server_args: Any) -> Any:
        if self is not SpeculativeAlgorithm.DSPARK:
            return stock(self, server_args)
        from sparktier.serving.engine.native.native_worker import NativeWorker

        return NativeWorker

    SpeculativeAlgorithm.create_worker = create_worker
