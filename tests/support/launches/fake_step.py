"""A rank's decode step on fake CUDA tensors: our code as it is, and SGLang's model, attention and pools replaced."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.runner_utils.capture_mode import _set_capture_attention_variant
from sglang.srt.models.dspark import VanillaMarkov

from sparktier.configs.plan_keys import EnginePlan
from sparktier.serving.engine.rank_options import LadderOptions, TreeBounds
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup
from sparktier.serving.engine.slots.request_slots import SlotTable
from sparktier.serving.engine.speculation.decode_step import DecodeStep
from sparktier.serving.engine.speculation.deferred_injection import FeatureInjection
from sparktier.serving.engine.speculation.draft_step import DraftStep
from sparktier.serving.engine.speculation.draft_tail import VARIANT
from sparktier.serving.engine.speculation.edge_acceptance import EdgeTable
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.speculation.worker import LadderWorker
from support.launches.attention import Attention
from support.launches.counter import GRAPH, Launches
from support.launches.graphs import graphs_of

CUDA = torch.device("cuda")
VOCAB, RANK, HIDDEN, BLOCK = 151_936, 256, 2048, 5
TREE = TreeBounds(rows=12, parents=4, children=4)
NO_SYNC = SimpleNamespace(enabled=lambda _site: False, sync=lambda _site, values: values)


def rank(
    launches: Launches,
    *,
    users: int,
    plan: EnginePlan,
    pacer: Pacer | None = None,
    equal_rows: bool = True,
    looks_up: bool = False,
) -> tuple[LadderWorker, Any]:
    """A worker that drafts trees, and its batch of `users` that decode greedily.

    equal_rows: in graphs of those. looks_up: drafts from contexts too.
    """
    worker: Any = object.__new__(LadderWorker)
    worker.options = LadderOptions(short_tokens=2, tree=TREE, prompt_lookup=looks_up)
    worker.device, worker.gamma, worker.verify_num_draft_tokens = "cuda", BLOCK, TREE.rows
    worker.pacer, worker._tp_sync = pacer, NO_SYNC
    worker._target_worker = SimpleNamespace(model_runner=_target_runner())
    worker.draft_model = _draft_model(launches, users)
    worker.query_token_num, worker._draft_block_spec_info = BLOCK, SimpleNamespace()
    worker._proposer = _Proposer(launches, users, worker._draft_block_spec_info)
    worker._draft_context = nullcontext
    worker._resolve_target_embed_tokens = lambda _model: None
    worker._verify_executor = _Executor(launches, worker._target_worker, users)
    worker._kv_injector = SimpleNamespace(
        ids_for=lambda plan: plan.write_virtual, inject_target_hidden=lambda **_: None
    )
    worker._window = lambda _batch: _window(launches, users)
    worker.penalties = PenaltyTable(users, vocab=VOCAB, device=CUDA)
    worker.set_plan(plan)
    worker.slots = SlotTable(users, device=torch.device("cpu"))
    worker.lookup = _lookup(users) if looks_up else None
    edges = EdgeTable([(1.0, 0.0)] * 3, device=CUDA)
    worker._drafter = DraftStep(worker, edges, needs_trees=True, lookup=worker.lookup)
    if pacer is None or not pacer.live:
        worker._drafter.capture_tail(most_requests=users, tree=TREE, paced=pacer is not None)
    worker.decode_step = DecodeStep(
        options=worker.options,
        block_tokens=BLOCK,
        window_rows=TREE.rows,
        drafter=worker._drafter,
        features=FeatureInjection(worker._kv_injector),
        penalties=worker.penalties,
        pacer=pacer,
        executor=worker._verify_executor,
        sync=NO_SYNC,
        group=None,
        model_runner=worker._target_worker.model_runner,
        graphs=graphs_of(worker) if equal_rows else None,
        lookup=worker.lookup,
    )
    return worker, _batch(launches, users)


@contextmanager
def capturing(kind: str) -> Iterator[None]:
    """What runs in the body is captured as `kind`, as far as SGLang tells."""
    _set_capture_attention_variant(kind)
    try:
        yield
    finally:
        _set_capture_attention_variant(None)


def run(worker: Any, batch: Any) -> Any:
    """Run one step under the worker's plan."""
    return worker.decode_step.run(worker._inputs(batch, None, None))


def _lookup(users: int) -> PromptLookup:
    return PromptLookup(users, context_tokens=2048, tokens=TREE.rows - 1, vocabulary=VOCAB, device=CUDA)


def _target_runner() -> Any:
    pool = SimpleNamespace(move_kv_cache=lambda _destination, _source: None)
    backend = SimpleNamespace(supports_ragged_verify_graph=False)
    return SimpleNamespace(
        model=None, token_to_kv_pool=pool, decode_cuda_graph_runner=None, attn_backend=backend, capture_tail_hooks=[]
    )


def _draft_model(launches: Launches, users: int) -> Any:
    with torch.device("meta"):
        head = VanillaMarkov(vocab_size=VOCAB, markov_rank=RANK)
    for layer in (head.markov_w1, head.markov_w2):
        layer.weight = torch.nn.Parameter(launches.cuda(VOCAB, RANK, dtype=torch.bfloat16), requires_grad=False)
    logits = launches.cuda(users * BLOCK, VOCAB, dtype=torch.bfloat16)
    return SimpleNamespace(
        markov_head=head, sample_from_anchor=True, compute_base_logits=lambda _hidden: (logits, None)
    )


class _Proposer:
    """In the place of SGLang's, whose forward is the draft's layers."""

    _base_logits_context = staticmethod(nullcontext)

    def __init__(self, launches: Launches, users: int, block: Any) -> None:
        self._launches, self._block = launches, block
        self.noise = SimpleNamespace(key=0, offset=launches.cuda(1))
        self._hidden = launches.cuda(users, BLOCK, HIDDEN, dtype=torch.bfloat16)

    def _run_forward(self, *, draft_sampler: Any = None, sampling_info: Any = None, **_: Any) -> Any:
        hidden, users = self._hidden.view(-1, HIDDEN), len(self._hidden)
        if draft_sampler is None:
            return SimpleNamespace(raw_hidden=hidden, can_run_graph=True)
        draft_sampler.stage_sampling_params(bs=users, sampling_info=sampling_info)
        with self._launches.phase(GRAPH), capturing(getattr(self._block, VARIANT)):
            draft_sampler(hidden, self._launches.cuda(users * BLOCK))
        return SimpleNamespace(raw_hidden=hidden, can_run_graph=True)


class _Executor:
    """In the place of SGLang's, whose pass is the target's layers; our attention plans it where rows are equal."""

    verify_epilogue = None

    def __init__(self, launches: Launches, target_worker: Any, users: int) -> None:
        self._launches, self.target_worker = launches, target_worker
        self._attention = Attention(slots=users, most_rows=users * TREE.rows, context=256, made=launches.cuda)
        self._attention.kv_index_translator = SimpleNamespace(pack_read_stream=lambda *_, **__: None)

    def _forward_prepared_verify(self, *, batch: Any, verify_input: Any, **_: Any) -> Any:
        if verify_input.ragged_verify_layout is None:
            self._attention.replay(
                SimpleNamespace(
                    batch_size=len(batch.seq_lens),
                    num_padding=0,
                    forward_mode=ForwardMode.TARGET_VERIFY,
                    req_pool_indices=batch.req_pool_indices,
                    seq_lens=batch.seq_lens,
                    seq_lens_cpu=batch.seq_lens_cpu,
                    kv_loc_plan=None,
                    spec_info=verify_input,
                )
            )
        rows = len(verify_input.draft_token)
        output = SimpleNamespace(
            next_token_logits=self._launches.cuda(rows, VOCAB, dtype=torch.bfloat16),
            hidden_states=self._launches.cuda(rows, 3 * HIDDEN, dtype=torch.bfloat16),
        )
        return SimpleNamespace(logits_output=output, can_run_cuda_graph=True)


def _window(launches: Launches, users: int) -> Any:
    slots = launches.cuda(users, TREE.rows)
    plan = SimpleNamespace(write_virtual=slots.view(-1))
    return SimpleNamespace(verify_cache_loc_2d=slots, positions_2d=launches.cuda(users, TREE.rows), kv_loc_plan=plan)


def _request(rid: str) -> Any:
    params = SimpleNamespace(custom_params=None)
    return SimpleNamespace(rid=rid, sampling_params=params, origin_input_ids=[1] * 5, output_ids=[2])


def _batch(launches: Launches, users: int) -> Any:
    lengths = torch.arange(100, 100 + users)
    sampling = SimpleNamespace(
        is_all_greedy=True,
        temperatures=launches.cuda(users, 1, dtype=torch.float32),
        top_ks=launches.cuda(users, dtype=torch.int32),
        logit_bias=None,
    )
    return SimpleNamespace(
        reqs=[_request(str(user)) for user in range(users)],
        sampling_info=sampling,
        seq_lens=launches.cuda(users),
        seq_lens_cpu=lengths,
        seq_lens_sum=int(lengths.sum()),
        req_pool_indices=launches.cuda(users),
        req_pool_indices_cpu=torch.arange(users),
        spec_info=SimpleNamespace(bonus_tokens=launches.cuda(users)),
        has_grammar=False,
        return_logprob=False,
    )
