"""The worker that SGLang's scheduler calls: its hooks alone. The step itself is in decode_step.py.

Extends SGLang's DSpark worker: its draft model, its feature injection, its verify pass. Ours are the depth of each
request, trees, the choice of tokens and the accept rule.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.layers.dp_attention import get_dp_tp_group
from sglang.srt.runtime_context import get_exec, get_parallel, get_schedule
from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2
from sglang.srt.speculative.dspark_components.dspark_planner import alloc_verify_window
from sglang.srt.speculative.dspark_components.dspark_worker_v2 import DSparkWorkerV2
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.engine.canary.scoring import Scorer
from sparktier.serving.engine.graphs import verify_graphs
from sparktier.serving.engine.plan import group_step
from sparktier.serving.engine.plan.in_force import start_plan
from sparktier.serving.engine.plan.step_inputs import StepInputs
from sparktier.serving.engine.rank_options import ladder_options, rank_options
from sparktier.serving.engine.requests.request_faults import is_marked, mark
from sparktier.serving.engine.sampling.keyed_sampler import KeyedSampler
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup
from sparktier.serving.engine.slots.request_slots import SlotTable
from sparktier.serving.engine.speculation import group_pass
from sparktier.serving.engine.speculation.decode_step import DecodeStep
from sparktier.serving.engine.speculation.deferred_injection import FeatureInjection
from sparktier.serving.engine.speculation.draft_step import DraftStep
from sparktier.serving.engine.speculation.edge_acceptance import draft_folder, read_edges
from sparktier.serving.engine.speculation.pacing import Pacer, pacer_of
from sparktier.serving.engine.speculation.row_budget import tier_caps
from sparktier.serving.engine.speculation.step_result import StepCounter, StepRecord
from sparktier.serving.engine.speculation.worker_setup import headless, wide_window
from sparktier.serving.engine.targets.target_facts import loaded_facts
from sparktier.serving.engine.targets.target_support import require_supported
from sparktier.serving.engine.telemetry.spans import spans_of_rank
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats

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
        self._load(**kwargs)
        self.model_runner.sampler = KeyedSampler()
        # Before SGLang sizes its cache by the memory that is left. The pool has a slot more than requests may run.
        self.penalties = self._penalty_table(get_schedule().max_running_requests + 1)
        self.pacer = pacer_of(rank_options())
        self.scorer = Scorer(self.model_runner.model, measures=self._target_tp_rank == 0)
        self.highest_rung = Rung.CHAIN if self.options.tree is None else Rung.TREE
        self.set_plan(start_plan(rank_options(), highest=self.highest_rung))
        if self._target_tp_rank == 0:
            self._log_what_is_in_force()

    def _load(self, **kwargs: Any) -> None:
        """Load the draft model, with its calibration."""
        with wide_window(self.options), headless():
            super().__init__(**kwargs)
        self._use_own_passes()
        self._edges = read_edges(draft_folder(kwargs["server_args"]), device=torch.device(self.device))
        self.calibration = self._edges.calibration

    def _use_own_passes(self) -> None:
        """Have draft graphs captured for the draft's block, not for the window, and drop SGLang's verify epilogue.

        The epilogue copies all logits in every verify graph, and accepts by SGLang's rule, which we never read.
        """
        rows = self.query_token_num
        self.draft_model_runner.spec_algorithm.draft_rows = rows
        # SGLang does not ask the algorithm about drafts whose block has the anchor in front.
        self.draft_model_runner.decode_num_tokens_per_req = lambda **_: rows
        epilogue: Any = self._verify_executor.verify_epilogue
        if epilogue is not None:
            self.model_runner.capture_tail_hooks.remove(epilogue.capture_hook)
            self._verify_epilogue = self._verify_executor.verify_epilogue = None

    def _log_what_is_in_force(self) -> None:
        """As warnings: the replica's log has nothing below."""
        logger.warning("calibration of tree edges in force: %s", self.calibration)
        if (short := self.options.short_tokens) > self.gamma:
            logger.warning("speculation.short_tokens %d is cut to the draft's block of %d", short, self.gamma)

    def _maybe_build_draft_sampler(self) -> Any:
        """Return what draft graphs go on with after the draft's layers; None where they end there."""
        if torch.device(self.device).type == "cpu" or not rank_options().captures_proposals:
            return None
        return self._drafter.capture_tail(
            most_requests=max(get_exec().graph.cuda_graph_config.decode.bs),
            tree=self.options.tree,
            paced=self.pacer is not None,
        )

    def alloc_memory_pool(self, **kwargs: Any) -> None:
        """Make the draft's KV pool, the table of request slots beside it, and the step that works on both."""
        super().alloc_memory_pool(**kwargs)
        slots = self.model_runner.req_to_token_pool.req_to_token.shape[0]
        # On the host: how many rows are verified is decided there, before the draft has run.
        self.slots = SlotTable(slots, device=torch.device("cpu"))
        self.spec_stats = SpeculationStats(block_tokens=self.gamma)
        self._counter = StepCounter(self.spec_stats, self.pacer, spans_of_rank(self._target_tp_rank))
        self.lookup = self._made_lookup() if self.options.prompt_lookup else None
        self._drafter = self._made_drafter()
        if slots > self.penalties.slots:
            self.penalties = self._penalty_table(slots)
        self.decode_step = self._made_step()
        if get_parallel().attn_dp_enabled:
            group_step.install(self._wish)
            group_pass.install()

    def init_cuda_graphs(self) -> None:
        """Capture the draft's graphs, then those of verify passes by requests and rows of a request."""
        super().init_cuda_graphs()
        # Ranks with requests of their own may need graphs of different rows, but have collectives in common.
        if torch.device(self.device).type != "cpu" and not get_parallel().attn_dp_enabled:
            tree = self.options.tree
            graphs = verify_graphs.capture(
                self.model_runner,
                chains=self.options.chain_rows(self.gamma),
                tree=None if tree is None else tree.rows,
            )
            self.decode_step = replace(self.decode_step, graphs=graphs)

    def _made_drafter(self) -> Any:
        survives = self.pacer is not None or self.options.prompt_lookup
        needs_trees = self.options.tree is not None or self.options.accept_rule == "ratio" or survives
        return DraftStep(self, self._edges, needs_trees=needs_trees, lookup=self.lookup)

    def _made_features(self) -> Any:
        return FeatureInjection(self._kv_injector)

    def _made_lookup(self) -> PromptLookup:
        config, table = self.model_runner.model_config, self.model_runner.req_to_token_pool.req_to_token
        return PromptLookup(
            table.shape[0],
            context_tokens=table.shape[1],
            tokens=self.verify_num_draft_tokens - 1,
            vocabulary=config.vocab_size,
            device=torch.device(self.device),
        )

    def _penalty_table(self, slots: int) -> PenaltyTable:
        vocab = self.model_runner.model_config.vocab_size
        return PenaltyTable(slots, vocab=vocab, device=torch.device(self.device))

    def _made_step(self) -> DecodeStep:
        return DecodeStep(
            options=self.options,
            block_tokens=self.gamma,
            window_rows=self.verify_num_draft_tokens,
            drafter=self._drafter,
            features=self._made_features(),
            penalties=self.penalties,
            pacer=self.pacer,
            executor=self._verify_executor,
            sync=self._tp_sync,
            group=get_dp_tp_group(),
            model_runner=self.model_runner,
            lookup=self.lookup,
        )

    def set_plan(self, plan: EnginePlan) -> None:
        """Put `plan` in force from the next step on; SGLang calls this between steps, on every rank alike."""
        self.plan = plan
        self._caps = tier_caps(plan, device=torch.device("cpu"))

    def set_pacer(self, pacer: Pacer | None) -> None:
        """Have `pacer` plan the rows of steps from the next one on; None: none are planned."""
        self.pacer = pacer
        self._counter = StepCounter(self.spec_stats, pacer, spans_of_rank(self._target_tp_rank))
        self.decode_step = replace(self.decode_step, pacer=pacer)

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """Forget a request that has ended, for whatever reason."""
        super().note_request_finished(rid=rid, natural_stop=natural_stop)
        self.penalties.remove_request(rid)
        if self.pacer is not None:
            self.pacer.forget(rid)

    def _forward_prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any = None) -> Any:
        self.decode_step.features.flush()
        if batch.forward_mode.is_idle():
            # Another group prefills.
            return self._target_prefill(batch, on_publish, pp_proxy_tensors)
        self.slots.add_requests(batch.reqs, batch.req_pool_indices_cpu, plan=self.plan)
        self.penalties.add_requests(batch.reqs, batch.req_pool_indices_cpu.tolist())
        if self.lookup is not None:
            self.lookup.add_requests(batch.reqs, batch.req_pool_indices_cpu.tolist())
        with self.penalties.in_prefill(batch), self.scorer.in_prefill(batch):
            result = self._target_prefill(batch, on_publish, pp_proxy_tensors)
        if is_marked(result.logits_output):
            silent = self.model_runner.sampler.silent.long()
            mark(result.logits_output, self._tp_sync.sync(SpecTpSyncSite.DSPARK_TARGET, silent) > 0)
        if self.lookup is not None:
            first = result.next_token_ids.long().unsqueeze(1)
            self.lookup.add_tokens(batch.req_pool_indices, batch.seq_lens, first)
        if not self.penalties.idle:
            first = result.next_token_ids.long().unsqueeze(1)
            self.penalties.count(batch.reqs, batch.req_pool_indices, first, torch.ones_like(first, dtype=torch.bool))
        return result

    def _target_prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any) -> Any:
        return super()._forward_prefill(batch, on_publish, pp_proxy_tensors)

    def _forward_decode(
        self, batch: Any, on_publish: Any, grammar_barrier: Any = None, coordination_plan: Any = None
    ) -> Any:
        if batch.spec_info is None:
            batch.spec_info = DFlashDraftInputV2.create_idle_input(device=self.device)
        if batch.forward_mode.is_idle():
            if (step := group_step.group_step_of(batch)) is not None:
                group_pass.run_idle(self._verify_executor, batch, step, width=self.verify_num_draft_tokens)
            return self._decode_idle_result(on_publish=on_publish)
        return self.decode_step.run(self._inputs(batch, on_publish, grammar_barrier))

    def _wish(self, batch: Any) -> group_step.Wish:
        """Return what this group's next step would run alone. With overlap, lengths may be those of the step before."""
        slots = batch.req_pool_indices_cpu
        lengths = torch.zeros_like(slots) if batch.seq_lens_cpu is None else batch.seq_lens_cpu
        caps, room = self._caps[self.slots.tier[slots]], self.slots.room(slots, lengths)
        return self.decode_step.wish(batch.reqs, self.plan, caps=caps, room=room)

    def _inputs(self, batch: Any, on_publish: Any, grammar_barrier: Any) -> StepInputs:
        slots = batch.req_pool_indices_cpu
        # SGLang keeps lengths on the host for attention that plans there, as FlashInfer's does.
        lengths = batch.seq_lens.cpu() if batch.seq_lens_cpu is None else batch.seq_lens_cpu
        tiers, step = self.slots.tier[slots], group_step.group_step_of(batch)
        return StepInputs(
            batch=batch,
            window=self._window(batch),
            plan=self.plan,
            tiers=tiers,
            caps=self._caps[tiers],
            room=self.slots.room(slots, lengths),
            prompt_lens=self.slots.prompt[slots],
            group_step=None if step is None else group_pass.padded(step, self.model_runner, batch),
            grammar_barrier=grammar_barrier,
            on_publish=on_publish,
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

    def count_step(self, record: StepRecord, accepted: list[int]) -> None:
        """Count a step whose results have reached the host, where reading its record costs no sync."""
        self._counter.count(record, accepted)
