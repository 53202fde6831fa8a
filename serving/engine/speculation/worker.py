"""One step of speculation inside SGLang: draft a chain, verify ragged rows in one pass, keep what the target would say.

Extends SGLang's DSpark worker: its draft model, its feature injection, its ragged verify pass. Ours are the depth of
each request, the choice of tokens and the accept rule. Knows nothing of where the plan comes from.
"""

import os
import time
from collections import deque
from typing import Any

import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2
from sglang.srt.speculative.dspark_components.dspark_draft import draft_markov_block, make_next_draft_input
from sglang.srt.speculative.dspark_components.dspark_planner import alloc_verify_window
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout
from sglang.srt.speculative.spec_utils import GrammarTree, build_grammar_vocab_mask
from torch import Tensor

from sparktier.kernels.accept import PAD_TOKEN, ChainAcceptance, accept_matching
from sparktier.serving.engine.speculation import options as speculation_options
from sparktier.serving.engine.speculation.figures import Figures
from sparktier.serving.engine.speculation.penalties import PenaltyTable
from sparktier.serving.engine.speculation.plan import MAX_TIERS, Plan
from sparktier.serving.engine.speculation.rows import row_counts, rung_tokens, tier_caps
from sparktier.serving.engine.speculation.sampling import KeyedSampler, choose
from sparktier.serving.engine.speculation.slots import SlotTable


class ChainWorker(DSparkWorkerV2):
    """Chains of any length up to the draft block, per request and per step, down to none.

    Source of the call order: `sglang/srt/speculative/dspark_components/dspark_worker_v2.py`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = speculation_options.load(os.environ[speculation_options.ENV])
        self.model_runner.sampler = KeyedSampler()
        # An overlapped scheduler launches a step before it has seen the last one's results.
        self._uncounted: deque[tuple[float, int, Tensor, Tensor]] = deque()
        self.set_plan(Plan())

    def alloc_memory_pool(self, **kwargs: Any) -> None:
        """Make the draft's KV pool, and the table of request slots beside it."""
        super().alloc_memory_pool(**kwargs)
        slots = self.model_runner.req_to_token_pool.req_to_token.shape[0]
        device = torch.device(self.device)
        self.slots = SlotTable(slots, tiers=MAX_TIERS, device=device)
        self.figures = Figures(block_tokens=self.gamma)
        self.penalties = PenaltyTable(slots, vocab=self.model_runner.model_config.vocab_size, device=device)

    def set_plan(self, plan: Plan) -> None:
        """Put `plan` in force from the next step on; SGLang calls this between steps, on every rank alike."""
        self.plan = plan
        self._caps = tier_caps(plan, device=torch.device(self.device))

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """Forget a request that has ended, for whatever reason."""
        super().note_request_finished(rid=rid, natural_stop=natural_stop)
        self.penalties.leave(rid)

    def _forward_prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any = None) -> Any:
        if not batch.forward_mode.is_idle():
            self.slots.enter(batch.reqs, batch.req_pool_indices)
            self.penalties.enter(batch.reqs, batch.req_pool_indices.tolist())
        result = super()._forward_prefill(batch, on_publish, pp_proxy_tensors)
        if not self.penalties.idle and not batch.forward_mode.is_idle():
            first = result.next_token_ids.long().unsqueeze(1)
            self.penalties.add(batch.req_pool_indices, first, torch.ones_like(first, dtype=torch.bool))
        return result

    def _forward_decode(
        self, batch: Any, on_publish: Any, grammar_barrier: Any = None, coordination_plan: Any = None
    ) -> GenerationBatchResult:
        if batch.spec_info is None:
            batch.spec_info = DFlashDraftInputV2.create_idle_input(device=self.device)
        if batch.forward_mode.is_idle():
            return self._decode_idle_result(on_publish=on_publish)
        started = time.perf_counter()
        committed = batch.seq_lens
        drafted = rung_tokens(self.plan.rung, block_tokens=self.gamma, short_tokens=self.options.short_tokens)
        rows = row_counts(
            draft_tokens=drafted,
            row_budget=self.plan.rows,
            caps=self._caps[self.slots.tier[batch.req_pool_indices]],
            room=self.slots.room(batch.req_pool_indices, committed),
        )
        window = self._window(batch)
        anchors = batch.spec_info.bonus_tokens.view(-1)
        drafts = self._draft(batch, window, anchors, drafted)
        ids = torch.cat([anchors.unsqueeze(1), drafts], dim=1)
        grammar = GrammarTree.from_linear_chain(ids) if batch.has_grammar else None
        verified, hidden = self._verify(batch, window, ids, rows)
        logits = verified.logits_output.next_token_logits
        self._adjust(logits, batch, drafts, grammar, grammar_barrier)
        accepted = self._accept(logits, batch, drafts, rows, window.positions_2d)
        result = self._commit(batch, window, verified, hidden, accepted, rows, on_publish)
        self._uncounted.append((started, int(self.plan.rung), self.slots.tier[batch.req_pool_indices], rows))
        return result

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """Count the step whose results have just reached the host, where reading them costs no sync."""
        super().on_verify_complete_cpu(num_correct_drafts_per_req, batch_size=batch_size)
        started, rung, tiers, rows = self._uncounted.popleft()
        self.figures.step(
            rung=rung,
            took_ms=(time.perf_counter() - started) * 1000.0,
            tiers=tiers.tolist(),
            rows=rows.tolist(),
            accepted=num_correct_drafts_per_req,
        )

    def _window(self, batch: Any) -> Any:
        lengths = batch.seq_lens_cpu if batch.seq_lens_cpu is not None else batch.spec_info.nxt_kv_lens_cpu
        return alloc_verify_window(
            batch=batch,
            bs=len(batch.seq_lens),
            device=self.device,
            verify_num_draft_tokens=self.verify_num_draft_tokens,
            block_pos_offsets=self._block_pos_offsets,
            model_runner=self.model_runner,
            seq_lens_cpu=lengths,
        )

    def _draft(self, batch: Any, window: Any, anchors: Tensor, drafted: int) -> Tensor:
        """[batch, gamma] int64: `drafted` greedy draft tokens of each request, zeros after them."""
        drafts = anchors.new_zeros(len(anchors), self.gamma)
        if drafted == 0:
            return drafts
        with self._draft_context():
            forward = self._proposer._run_forward(
                batch=batch,
                draft_input=batch.spec_info,
                verify_window=window,
                bs=len(anchors),
                device=self.device,
                embed_module=self._resolve_target_embed_tokens(self.target_worker.model_runner.model),
            )
            with self._proposer._base_logits_context():
                base, _ = self.draft_model.compute_base_logits(forward.raw_hidden)
            tokens, _ = draft_markov_block(
                markov_head=self.draft_model.markov_head,
                base_logits=base.view(len(anchors), self.gamma, -1)[:, :drafted],
                anchor_tokens=anchors,
                draft_hidden=forward.draft_hidden_3d[:, :drafted],
                step_temperatures=torch.zeros(len(anchors), device=anchors.device),
                noise=self._proposer.noise,
                tp_sync=self._tp_sync,
                greedy_draft=True,
            )
        drafts[:, :drafted] = tokens
        return drafts

    def _verify(self, batch: Any, window: Any, ids: Tensor, rows: Tensor) -> tuple[Any, Tensor]:
        """Run the target over each request's first `rows` ids; logits and features come back at full width."""
        layout = self._layout(rows)
        verified, hidden = self._verify_executor.run_compact(
            batch=batch,
            layout=layout,
            draft_block_ids=ids[:, : self.gamma],
            draft_tokens=ids[:, 1:],
            bs=len(ids),
            device=self.device,
            sampling_info=None,
            verify_window=window,
        )
        return verified, hidden

    def _layout(self, rows: Tensor) -> RaggedVerifyLayout:
        counts = rows.tolist()
        return RaggedVerifyLayout.from_verify_lens(
            verify_lens_cpu=counts, device=torch.device(self.device), grid=[sum(counts)]
        )

    def _adjust(self, logits: Tensor, batch: Any, drafts: Tensor, grammar: Any, barrier: Any) -> None:
        """Apply, in place, what changes the target's law before sampling: penalties, grammar, then logit bias."""
        info = batch.sampling_info
        by_row = logits.view(len(batch.reqs), self.verify_num_draft_tokens, -1)
        if not self.penalties.idle:
            emitted = batch.seq_lens + 1 - self.slots.prompt[batch.req_pool_indices]
            self.penalties.apply(by_row, slots=batch.req_pool_indices, drafts=drafts, emitted=emitted)
        if grammar is not None:
            mask = build_grammar_vocab_mask(
                reqs=batch.reqs, tree=grammar, sampling_info=info, device=logits.device, barrier=barrier
            )
            if mask is not None:
                mask.apply(logits)
        if info.logit_bias is not None:
            by_row.add_(info.logit_bias.unsqueeze(1))

    def _accept(self, logits: Tensor, batch: Any, drafts: Tensor, rows: Tensor, positions: Tensor) -> ChainAcceptance:
        chosen = choose(logits, batch.sampling_info, positions=positions)
        return accept_matching(drafts=drafts, target_tokens=chosen, row_counts=rows)

    def _commit(
        self,
        batch: Any,
        window: Any,
        verified: Any,
        hidden: Tensor,
        accepted: ChainAcceptance,
        rows: Tensor,
        on_publish: Any,
    ) -> GenerationBatchResult:
        """Keep accepted rows: their features go into the draft's KV, their tokens to the scheduler."""
        lengths = (accepted.accepted + 1).to(torch.int32)
        new_seq_lens = batch.seq_lens + lengths
        tokens = accepted.tokens.masked_fill(accepted.tokens == PAD_TOKEN, 0)
        if on_publish is not None:
            on_publish(new_seq_lens)
        if not self.penalties.idle:
            self.penalties.add(batch.req_pool_indices, accepted.tokens, accepted.tokens != PAD_TOKEN)
        if batch.return_logprob:
            compute_spec_logprobs(
                batch, verified.logits_output, tokens.reshape(-1), chain_stride=self.verify_num_draft_tokens
            )
        self._kv_injector.inject_ragged(
            batch=batch,
            layout=None,
            hidden_strided=hidden,
            commit_lens=lengths,
            bs=len(lengths),
            kv_loc_plan=window.kv_loc_plan,
        )
        verified.logits_output.hidden_states = None
        return GenerationBatchResult(
            logits_output=verified.logits_output,
            next_token_ids=tokens.reshape(-1),
            accept_lens=lengths,
            cap_lens=rows.to(torch.int32),
            can_run_cuda_graph=verified.can_run_cuda_graph,
            next_draft_input=make_next_draft_input(bonus_tokens=accepted.bonus, new_seq_lens=new_seq_lens),
            speculative_num_draft_tokens=self.verify_num_draft_tokens,
            new_seq_lens=new_seq_lens,
        )
