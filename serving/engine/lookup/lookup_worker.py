"""The worker of `speculation.method: ngram`: the ladder without a draft model."""

from typing import Any

import torch
from sglang.srt.layers.dp_attention import get_dp_tp_group
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.draft_worker_common import build_block_pos_offsets
from sglang.srt.speculative.dspark_components.dspark_draft import make_next_draft_input
from sglang.srt.speculative.dspark_components.dspark_verify import TargetVerifyExecutor
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2
from sglang.srt.speculative.spec_tp_sync import SpecTpSync, SpecTpSyncSite

from sparktier.serving.engine.lookup.lookup_step import LookupStep, NoFeatures
from sparktier.serving.engine.speculation.worker import LadderWorker


class LookupWorker(LadderWorker):
    """Chains from requests' own contexts. To SGLang it is a stage of a pipeline that hosts no draft."""

    _hosts_draft = property(lambda _worker: False, lambda _worker, _value: None)

    def _load(self, **kwargs: Any) -> None:
        DSparkWorkerV2.__init__(self, **kwargs)
        block = self.options.block(None)
        assert block is not None, "settings name it"
        self._target_tp_rank = get_parallel().tp_rank
        self.gamma, self.verify_num_draft_tokens = block, self.options.width(block)
        self.speculative_num_draft_tokens = self.verify_num_draft_tokens
        self._tp_sync = SpecTpSync(get_dp_tp_group())
        self._block_pos_offsets = build_block_pos_offsets(length=self.verify_num_draft_tokens, device=self.device)
        self._verify_executor = TargetVerifyExecutor(
            target_worker=self.target_worker,
            gamma=self.gamma,
            verify_num_draft_tokens=self.verify_num_draft_tokens,
            model_runner=self.model_runner,
            kv_injector=None,
            tp_sync=self._tp_sync,
        )
        self.calibration = "of prompt lookup: counted while it runs"

    def _made_drafter(self) -> Any:
        assert self.lookup is not None, "settings ask for it"
        return LookupStep(self.lookup, self._tp_sync)

    def _made_features(self) -> Any:
        return NoFeatures()

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, grammar_barrier: Any = None, *, pp_proxy_tensors: Any = None
    ) -> Any:
        """Run a prefill, or a step of the ladder."""
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            return self._forward_prefill(batch, on_publish, pp_proxy_tensors)
        return self._forward_decode(batch, on_publish, grammar_barrier)

    def _target_prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any) -> Any:
        """Prefill as SGLang's worker does, whose draft would take the features."""
        if batch.forward_mode.is_idle():
            return self._decode_idle_result(on_publish=on_publish)
        result = self.target_worker.forward_batch_generation(
            batch, pp_proxy_tensors=pp_proxy_tensors, capture_hidden_mode=CaptureHiddenMode.FULL
        )
        tokens: torch.Tensor = result.next_token_ids
        self._tp_sync.sync(SpecTpSyncSite.DSPARK_TARGET, tokens)
        result.new_seq_lens = batch.seq_lens
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        result.logits_output.hidden_states = None
        result.next_draft_input = make_next_draft_input(bonus_tokens=tokens, new_seq_lens=batch.seq_lens)
        return result
