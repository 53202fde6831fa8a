"""One step of speculation inside SGLang: draft, verify ragged rows in one pass, keep what the target would say.

Extends SGLang's DSpark worker: its draft model, its feature injection, its verify pass. Ours are the depth of each
request, trees, the choice of tokens and the accept rule.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.runtime_context import get_schedule
from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2
from sglang.srt.speculative.dspark_components import dspark_worker_v2
from sglang.srt.speculative.dspark_components.dspark_config import parse_dspark_draft_config
from sglang.srt.speculative.dspark_components.dspark_draft import make_next_draft_input
from sglang.srt.speculative.dspark_components.dspark_planner import alloc_verify_window
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from sglang.srt.speculative.spec_utils import GrammarTree, build_grammar_vocab_mask
from torch import Tensor

from sparktier.configs.plan_keys import Plan, Rung
from sparktier.kernels.accept import PAD_TOKEN, accept_matching
from sparktier.kernels.accept_tree import RowReader, TreeAcceptance, walk_drawn, walk_matching
from sparktier.kernels.draft_tree import NO_ROW, DraftTree, anchors_alone, compaction_plan, row_links
from sparktier.kernels.expand import Shape
from sparktier.kernels.target_probs import NO_TOKEN
from sparktier.serving.engine.rank_options import LadderOptions, ladder_options, rank_options
from sparktier.serving.engine.requests.request_faults import is_marked, mark
from sparktier.serving.engine.sampling.keyed_sampler import KeyedSampler
from sparktier.serving.engine.speculation import verify_pass
from sparktier.serving.engine.speculation.deferred_injection import HeldFeatures
from sparktier.serving.engine.speculation.draft_step import Bounds, Drafted, DraftStep
from sparktier.serving.engine.speculation.edge_acceptance import draft_folder, read_edges
from sparktier.serving.engine.speculation.headless_planner import HeadlessPlanner
from sparktier.serving.engine.speculation.penalty_table import PenaltyTable
from sparktier.serving.engine.speculation.request_slots import SlotTable
from sparktier.serving.engine.speculation.row_budget import row_counts, rung_tokens, tier_caps
from sparktier.serving.engine.speculation.step_record import CountedResult, StepRecord
from sparktier.serving.engine.speculation.target_distribution import TargetDistribution
from sparktier.serving.engine.speculation.verify_pass import Verified
from sparktier.serving.engine.targets.target_facts import loaded_facts
from sparktier.serving.engine.targets.target_support import require_supported
from sparktier.serving.engine.telemetry.spans import spans_of_rank
from sparktier.serving.engine.telemetry.spec_stats import Figures
from sparktier.serving.engine.telemetry.step_phases import Phases

logger = logging.getLogger(__name__)


class LadderWorker(DSparkWorkerV2):
    """Trees, chains of any length up to the draft block, or nothing drafted: per request and per step.

    Source of the call order: `sglang/srt/speculative/dspark_components/dspark_worker_v2.py`.
    """

    takes_plans = True

    def __init__(self, **kwargs: Any) -> None:
        self.options = ladder_options()
        target = kwargs["target_worker"].model_runner
        require_supported(loaded_facts(target), self.options.method, target.model_config.model_path)
        with _wide_window(self.options), _headless():
            super().__init__(**kwargs)
        self.model_runner.sampler = KeyedSampler()
        # Before SGLang sizes its cache by the memory that is left. The pool has a slot more than requests may run.
        self.penalties = self._penalty_table(get_schedule().max_running_requests + 1)
        self._spans = spans_of_rank(self._target_tp_rank)
        self._held = HeldFeatures(self._write_features)
        edges = read_edges(draft_folder(kwargs["server_args"]), device=torch.device(self.device))
        self.calibration = edges.calibration
        self._draft_step = DraftStep(
            self, edges, needs_trees=self.options.tree is not None or self.options.accept_rule == "ratio"
        )
        self.highest_rung = Rung.CHAIN if self.options.tree is None else Rung.TREE
        self.set_plan(Plan(rung=self.highest_rung))
        if self._target_tp_rank == 0:
            self._say_what_is_in_force()

    def _say_what_is_in_force(self) -> None:
        """Into the replica's log, which has nothing below a warning."""
        logger.warning("calibration of tree edges in force: %s", self.calibration)
        if (short := self.options.short_tokens) > self.gamma:
            logger.warning("speculation.short_tokens %d is cut to the draft's block of %d", short, self.gamma)

    def _maybe_build_draft_sampler(self) -> None:
        """Leave the draft's graphs at the block's hidden states: SGLang would fold the drafting of its chain in."""

    def alloc_memory_pool(self, **kwargs: Any) -> None:
        """Make the draft's KV pool, and the table of request slots beside it."""
        super().alloc_memory_pool(**kwargs)
        slots = self.model_runner.req_to_token_pool.req_to_token.shape[0]
        device = torch.device(self.device)
        self.slots = SlotTable(slots, tiers=rank_options().tiers, device=device)
        self.figures = Figures(block_tokens=self.gamma)
        if slots > self.penalties.slots:
            self.penalties = self._penalty_table(slots)

    def _penalty_table(self, slots: int) -> PenaltyTable:
        vocab = self.model_runner.model_config.vocab_size
        return PenaltyTable(slots, vocab=vocab, device=torch.device(self.device))

    def set_plan(self, plan: Plan) -> None:
        """Put `plan` in force from the next step on; SGLang calls this between steps, on every rank alike."""
        self.plan = plan
        self._caps = tier_caps(plan, device=torch.device(self.device))

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """Forget a request that has ended, for whatever reason."""
        super().note_request_finished(rid=rid, natural_stop=natural_stop)
        self.penalties.leave(rid)

    def _forward_prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any = None) -> Any:
        self._held.release()
        if not batch.forward_mode.is_idle():
            self.slots.enter(batch.reqs, batch.req_pool_indices)
            self.penalties.enter(batch.reqs, batch.req_pool_indices.tolist())
        with self.penalties.in_prefill(batch):
            result = super()._forward_prefill(batch, on_publish, pp_proxy_tensors)
        if is_marked(result.logits_output):
            silent = self.model_runner.sampler.silent.long()
            mark(result.logits_output, self._tp_sync.sync(SpecTpSyncSite.DSPARK_TARGET, silent) > 0)
        if not self.penalties.idle and not batch.forward_mode.is_idle():
            first = result.next_token_ids.long().unsqueeze(1)
            self.penalties.add(batch.reqs, batch.req_pool_indices, first, torch.ones_like(first, dtype=torch.bool))
        return result

    def _forward_decode(
        self, batch: Any, on_publish: Any, grammar_barrier: Any = None, coordination_plan: Any = None
    ) -> Any:
        if batch.spec_info is None:
            batch.spec_info = DFlashDraftInputV2.create_idle_input(device=self.device)
        if batch.forward_mode.is_idle():
            return self._decode_idle_result(on_publish=on_publish)
        phases = Phases(torch.device(self.device))
        window = self._window(batch)
        with phases.of("draft"):
            drafted, branching = self._draft(batch, window)
        tree = drafted.tree
        grammar = self._grammar_tree(tree, branching) if batch.has_grammar else None
        with phases.of("verify"):
            verified = verify_pass.run(
                executor=self._verify_executor, batch=batch, window=window, tree=tree, branching=branching
            )
        law = TargetDistribution(
            verified,
            batch=batch,
            tree=tree,
            prompt_lens=self.slots.prompt[batch.req_pool_indices],
            penalties=self.penalties,
            grammar=self._grammar_mask(batch, grammar, grammar_barrier, verified.logits.device),
        )
        accepted = self._agreed(self._accept(law, batch, drafted, verified, branching))
        if branching:
            self._move_kv(window, accepted.path)
        with phases.of("inject"):
            self._inject(batch, window, verified, accepted)
        of_tier = self.slots.tier[batch.req_pool_indices]
        record = StepRecord(phases, int(self.plan.rung), of_tier, tree.row_counts, tree.depths.amax(dim=1))
        return self._commit(batch, verified, record, accepted, on_publish)

    def count_step(self, record: StepRecord, accepted: list[int]) -> None:
        """Count a step whose results have reached the host, where reading its record costs no sync."""
        rows = record.row_counts.tolist()
        self.figures.step(
            rung=record.rung,
            phase_ms=record.phases.lasted_ms(),
            tiers=record.tiers.tolist(),
            rows=rows,
            depths=record.depths.tolist(),
            accepted=accepted,
        )
        if self._spans is not None:
            attributes = {"rung": record.rung, "requests": len(rows), "rows": sum(rows), "accepted": sum(accepted)}
            self._spans.step(record.phases, attributes)

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

    def _draft(self, batch: Any, window: Any) -> tuple[Drafted, bool]:
        """What the plan's rung drafts for each request, and whether it may branch."""
        rung, options = self.plan.rung, self.options
        rows = options.tree.rows if options.tree else 1
        drafted = rung_tokens(rung, block_tokens=self.gamma, short_tokens=options.short_tokens, tree_rows=rows)
        if drafted == 0:
            return Drafted(anchors_alone(batch.spec_info.bonus_tokens.view(-1))), False
        useful = self.slots.room(batch.req_pool_indices, batch.seq_lens) - 1
        counts = row_counts(
            draft_tokens=drafted,
            row_budget=self.plan.rows,
            caps=self._caps[self.slots.tier[batch.req_pool_indices]],
            # A tree's rows may outnumber its depth; who has a use for none gets none.
            useful=torch.where(useful > 0, drafted, 0) if rung == Rung.TREE else useful,
        )
        self._held.release()
        bounds = Bounds(self._shape(min(drafted, self.gamma)), counts, useful, width=drafted + 1)
        # Whoever doesn't sample is served as well by the likeliest drafts, which cost less than draws.
        if options.accept_rule == "ratio" and not batch.sampling_info.is_all_greedy:
            return self._draft_step.drawn_tree(batch, window, bounds), rung == Rung.TREE
        if rung == Rung.TREE:
            return self._draft_step.top_tree(batch, window, bounds), True
        return self._draft_step.chain(batch, window, drafted=drafted, row_counts=counts), False

    def _shape(self, depth: int) -> Shape:
        tree = self.options.tree if self.plan.rung == Rung.TREE else None
        return Shape(depth, tree.parents, tree.children) if tree else Shape(depth, 1, 1)

    def _grammar_tree(self, tree: DraftTree, branching: bool) -> Any:
        if not branching:
            return GrammarTree.from_linear_chain(tree.tokens)
        links = row_links(tree=tree)
        return GrammarTree.from_device(links.next_token, links.next_sibling, tree.tokens)

    def _grammar_mask(self, batch: Any, grammar: Any, barrier: Any, device: torch.device) -> Any:
        if grammar is None:
            return None
        return build_grammar_vocab_mask(
            reqs=batch.reqs, tree=grammar, sampling_info=batch.sampling_info, device=device, barrier=barrier
        )

    def _accept(
        self, law: TargetDistribution, batch: Any, drafted: Drafted, verified: Verified, branching: bool
    ) -> TreeAcceptance:
        tree = drafted.tree
        if drafted.draft_probs is not None:
            return self._accept_drawn(law, batch, tree, drafted.draft_probs)
        if tree.tokens.shape[1] == 1:
            chosen = law.choose(verified.requests, verified.rows)
            rows = chosen.unsqueeze(1)
            return TreeAcceptance(torch.zeros_like(chosen), torch.zeros_like(rows), rows, chosen)
        if branching or law.by_level:
            return walk_matching(tree=tree, choose=law.choose, max_depth=self.gamma)
        chosen = torch.zeros_like(tree.tokens)
        chosen[verified.requests, verified.rows] = law.choose(verified.requests, verified.rows)
        chain = accept_matching(drafts=tree.tokens[:, 1:], target_tokens=chosen, row_counts=tree.row_counts)
        places = torch.arange(tree.tokens.shape[1], device=chosen.device).expand_as(tree.tokens)
        path = places.masked_fill(places > chain.accepted.unsqueeze(1), NO_ROW)
        return TreeAcceptance(chain.accepted, path, chain.tokens, chain.bonus)

    def _accept_drawn(
        self, law: TargetDistribution, batch: Any, tree: DraftTree, draft_probs: RowReader
    ) -> TreeAcceptance:
        return walk_drawn(
            tree=tree,
            target_probs=law.probs,
            draft_probs=draft_probs,
            seeds=batch.sampling_info.sampling_seed,
            anchor_positions=batch.seq_lens,
            max_depth=self.gamma,
            max_children=self._shape(self.gamma).children,
        )

    def _agreed(self, accepted: TreeAcceptance) -> TreeAcceptance:
        """Rank 0's outcome on every rank: ranks that commit different tokens would never meet again."""
        if not self._tp_sync.enabled(SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE):
            return accepted
        width = accepted.path.shape[1]
        columns = [accepted.accepted.unsqueeze(1), accepted.bonus.unsqueeze(1), accepted.path, accepted.tokens]
        packed = self._tp_sync.sync(SpecTpSyncSite.DSPARK_ACCEPT_SAMPLE, torch.cat(columns, dim=1))
        stood, bonus, path, tokens = packed.split([1, 1, width, width], dim=1)
        return TreeAcceptance(stood.squeeze(1), path, tokens, bonus.squeeze(1))

    def _commit(
        self,
        batch: Any,
        verified: Verified,
        record: StepRecord,
        accepted: TreeAcceptance,
        on_publish: Any,
    ) -> CountedResult:
        """Hand the accepted tokens to the scheduler, with the record to count them by."""
        lengths = (accepted.accepted + 1).to(torch.int32)
        new_seq_lens = batch.seq_lens + lengths
        tokens = accepted.tokens.masked_fill(accepted.tokens == PAD_TOKEN, 0)
        if on_publish is not None:
            on_publish(new_seq_lens)
        if not self.penalties.idle:
            self.penalties.add(batch.reqs, batch.req_pool_indices, accepted.tokens, accepted.tokens != PAD_TOKEN)
        output = verified.result.logits_output
        if batch.return_logprob:
            places = _kept(verified, accepted)
            output.next_token_logits = verified.logits
            predicted = tokens.new_zeros(len(verified.logits)).scatter_(0, places.flatten(), tokens.flatten())
            predicted[places[:, 0]] = tokens[:, 0]
            compute_spec_logprobs(batch, output, predicted, accept_index=places)
        output.hidden_states = None
        mark(output, accepted.bonus == NO_TOKEN)
        return CountedResult(
            record=record,
            logits_output=output,
            next_token_ids=tokens.reshape(-1),
            accept_lens=lengths,
            cap_lens=record.row_counts.to(torch.int32),
            can_run_cuda_graph=verified.result.can_run_cuda_graph,
            next_draft_input=make_next_draft_input(bonus_tokens=accepted.bonus.clamp(min=0), new_seq_lens=new_seq_lens),
            speculative_num_draft_tokens=self.verify_num_draft_tokens,
            speculative_output_stride=tokens.shape[1],
            new_seq_lens=new_seq_lens,
        )

    def _move_kv(self, window: Any, path: Tensor) -> None:
        """Bring the accepted path's KV to the front of each request's window; the draft's KV is injected there."""
        plan = compaction_plan(path=path, slots=window.verify_cache_loc_2d)
        self.model_runner.token_to_kv_pool.move_kv_cache(plan.destination.flatten(), plan.source.flatten())

    def _inject(self, batch: Any, window: Any, verified: Verified, accepted: TreeAcceptance) -> None:
        """Write the target's features of accepted rows into the draft's KV; where nothing was drafted, later."""
        path = accepted.path.shape[1]
        slots = self._kv_injector.ids_for(window.kv_loc_plan).view(len(accepted.path), -1)[:, :path]
        if path == 1:
            # The window's tensors may be written again by the next step.
            positions = window.positions_2d[:, 0].clone()
            self._held.hold(batch.reqs, verified.hidden[verified.first], slots.flatten().clone(), positions)
            return
        self._kv_injector.inject_target_hidden(
            target_hidden=verified.hidden[_kept(verified, accepted).flatten()],
            cache_loc=slots.flatten(),
            cache_loc_2d=slots,
            positions=window.positions_2d[:, :path].flatten(),
            commit_lens=accepted.accepted + 1,
        )

    def _write_features(self, hidden: Tensor, slots: Tensor, positions: Tensor) -> None:
        self._kv_injector.inject_target_hidden(target_hidden=hidden, cache_loc=slots, positions=positions)


def _kept(verified: Verified, accepted: TreeAcceptance) -> Tensor:
    """[batch, path]: where each accepted row lies among the packed rows; beyond the path, the anchor's again."""
    return verified.first.unsqueeze(1) + accepted.path.clamp(min=0)


@contextmanager
def _wide_window(options: LadderOptions) -> Iterator[None]:
    """Let SGLang's worker verify more rows than its block plus one, to which it ties the window.

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


@contextmanager
def _headless() -> Iterator[None]:
    stock = dspark_worker_v2.DSparkVerifyPlanner
    dspark_worker_v2.DSparkVerifyPlanner = HeadlessPlanner
    try:
        yield
    finally:
        dspark_worker_v2.DSparkVerifyPlanner = stock
