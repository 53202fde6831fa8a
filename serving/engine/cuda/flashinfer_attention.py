"""FlashInfer attention on GPUs: verify passes of chains and trees inside CUDA graphs.

Extends SGLang's backend, which runs ragged rows and trees only without graphs. For each bucket of rows two graphs are
captured: one without a mask for chains, and one with a mask for trees. Passes whose requests have equal rows have one
of these kinds (graphs/verify_graphs.py). A draft's block has two graphs as well, which end differently.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from sglang.kernels.ops.speculative.ragged_verify_kernels import PaddedToBucket
from sglang.srt.layers.attention import attention_registry
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend, PrefillMetadata
from sglang.srt.mem_cache.kv_loc_plan import IdSpaceKind
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout, resolve_ragged_verify_layout
from torch import Tensor
from torch.nn.functional import pad

from sparktier.kernels.flashinfer_mask import MaskBuffers
from sparktier.kernels.verify.attention_tables import AttentionTables, TreeMask, write_tables
from sparktier.serving.engine.cuda.flashinfer_plan import HostPlan, plan_on_host
from sparktier.serving.engine.graphs.verify_graphs import CHAIN, TREE
from sparktier.serving.engine.speculation.draft_tail import CHAIN_TAIL, TREE_TAIL, VARIANT

_NAME = "flashinfer"
_ALL_BITS, _BYTE_BITS = 255, 8


@dataclass(frozen=True)
class VerifyVariants:
    """Selects one of a bucket's two graphs. Source of the contract: SGLang's `layers/attention/graph_variants.py`."""

    capture_labels: ClassVar[tuple[str, ...]] = (CHAIN, TREE)

    def select(self, forward_batch: Any) -> str:
        """Return TREE where rows may branch; a chain is causal and needs no mask."""
        return CHAIN if getattr(forward_batch.spec_info, "ancestor_words", None) is None else TREE


@dataclass(frozen=True)
class DraftVariants:
    """Selects one of the two graphs of a draft's block: they differ in what follows its layers."""

    capture_labels: ClassVar[tuple[str, ...]] = (CHAIN_TAIL, TREE_TAIL)

    def select(self, forward_batch: Any) -> str:
        """Return the kind that this draft's input names."""
        return getattr(forward_batch.spec_info, VARIANT, CHAIN_TAIL)


class Lengths(NamedTuple):
    """Committed tokens and verified rows of each slot of a graph, [slots] int32 on the host.

    Spare rows of the bucket belong to slots without a request or, where there are none, to the last request.
    """

    committed: Tensor
    rows: Tensor

    @property
    def keys(self) -> Tensor:
        """Number of keys that a slot's rows may attend to, [slots] int32."""
        return self.committed + self.rows

    @property
    def host_plan(self) -> HostPlan:
        """What FlashInfer plans by."""
        keys = self.keys
        return HostPlan(pad(self.rows.cumsum(0), (1, 0)).int(), pad(keys.cumsum(0), (1, 0)).int(), keys)


class GraphKey(NamedTuple):
    """A captured verify pass. rows: of each request, None where they differ; tokens: in all."""

    slots: int
    rows: int | None
    tokens: int
    is_tree: bool


class LadderFlashInfer(FlashInferAttnBackend):
    """SGLang's FlashInfer backend with ragged verify passes under graphs."""

    # Every graph's plan comes just before its replay, and the first runner's buffers are large enough for all.
    shares_graph_buffers = True

    def __init__(self, model_runner: Any, **options: Any) -> None:
        self._is_draft, self._graph_rows = model_runner.is_draft_worker, 0
        super().__init__(model_runner, **options)
        # SGLang runs these checks only for its own class.
        if model_runner.prefill_attention_backend_str == _NAME:
            self._check_kv_attention_access("prefill", self.prefill_kv_access)
        if model_runner.decode_attention_backend_str == _NAME:
            self._check_kv_attention_access("decode", self.decode_kv_access)

    @property
    def supports_ragged_verify_graph(self) -> bool:
        """True if one wrapper serves all layers. Sliding windows and cross attention need several, and run eagerly."""
        return self.dispatch_reason is None

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int, kv_indices_buf: Tensor | None = None) -> None:
        """Allocate the buffers that graphs read, once: the target's first runner has the most rows.

        SGLang's mask buffer has a byte where ours needs a bit.
        """
        if self._graph_rows:
            assert max_num_tokens <= self._graph_rows, "graphs were captured that read buffers of fewer rows"
            return
        self._graph_rows = max_num_tokens
        super().init_cuda_graph_state(max_bs, max_num_tokens, kv_indices_buf)
        # Results of a capture are discarded, but rows that see no column would route tokens by NaN.
        self.cuda_graph_custom_mask.fill_(_ALL_BITS)
        self._verify_wrappers: dict[GraphKey, Any] = {}
        # SGLang keeps one plan for each number of requests; a graph must not read the plan of another.
        self._plans: dict[str | None, dict[int, Any]] = {None: self.prefill_cuda_graph_metadata}

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Update a graph's buffers to the lengths, slots and tree of this pass, before its capture and every replay."""
        if self._is_draft or not forward_batch.forward_mode.is_target_verify():
            kind = get_capture_attention_variant() if in_capture else getattr(forward_batch.spec_info, VARIANT, None)
            if kind not in (DraftVariants.capture_labels if in_capture else self._plans):
                kind = None
            self.prefill_cuda_graph_metadata = self._plans.setdefault(kind, {})
            super().init_forward_metadata_out_graph(forward_batch, in_capture)
            return
        key = self._key(forward_batch, in_capture=in_capture)
        layout = resolve_ragged_verify_layout(forward_batch)
        device = forward_batch.seq_lens.device
        if in_capture:
            self._add_wrapper(key)
        if layout is None:
            rows = live = _equal_rows(key.slots, key.rows, device)
            lengths = equal_lengths(forward_batch, key, in_capture=in_capture)
        else:
            live = layout.verify_lens
            rows = PaddedToBucket.execute(
                verify_lens=live, graph_num_tokens=key.tokens, bs=layout.bs, padded_bs=key.slots
            )
            lengths = host_lengths(forward_batch, layout, slots=key.slots, in_capture=in_capture)
        tree = None
        if key.is_tree and not in_capture:
            most = max(_mask_bytes(*slot) for slot in zip(lengths.rows.tolist(), lengths.keys.tolist(), strict=True))
            tree = TreeMask(forward_batch.spec_info.ancestor_words, live, most)
        self._plan(self._verify_wrappers[key], forward_batch, rows, lengths, tree, key, in_capture=in_capture)

    @staticmethod
    def _key(forward_batch: Any, *, in_capture: bool) -> GraphKey:
        variant = get_capture_attention_variant() if in_capture else VerifyVariants().select(forward_batch)
        slots, layout = forward_batch.batch_size, resolve_ragged_verify_layout(forward_batch)
        if layout is not None:
            return GraphKey(slots, None, layout.graph_num_tokens, variant == TREE)
        rows = forward_batch.spec_info.draft_token_num
        return GraphKey(slots, rows, slots * rows, variant == TREE)

    def _add_wrapper(self, key: GraphKey) -> None:
        (wrapper,) = self._create_prefill_wrappers(key.slots, use_custom_mask=key.is_tree)
        # Passes follow each other on one stream, each planned anew, so one plan's buffers serve all graphs.
        for other in self._verify_wrappers.values():
            wrapper._int_workspace_buffer = other._int_workspace_buffer
            wrapper._pin_memory_int_workspace_buffer = other._pin_memory_int_workspace_buffer
        self._verify_wrappers[key] = wrapper
        self.forward_metadata = PrefillMetadata([wrapper], False, False)

    def _plan(
        self,
        wrapper: Any,
        forward_batch: Any,
        rows: Tensor,
        lengths: Lengths,
        tree: TreeMask | None,
        key: GraphKey,
        *,
        in_capture: bool,
    ) -> None:
        """Fill what `wrapper`'s graph reads, and plan it. rows [slots] int32: of `lengths`, on the device."""
        slots = key.slots
        tables = AttentionTables(
            torch.empty(slots, dtype=torch.int64, device=rows.device),
            self.cuda_graph_qo_indptr[0][: slots + 1],
            self.kv_indptr[0][: slots + 1],
            MaskBuffers(self.cuda_graph_custom_mask, self.cuda_graph_qk_indptr[0][: slots + 1]),
        )
        write_tables(tables=tables, prefix_lens=forward_batch.seq_lens[:slots], rows=rows, tree=tree)
        kv_indices = self.cuda_graph_kv_indices[0][: int(lengths.keys.sum())]
        self.kv_index_translator.pack_read_stream(
            forward_batch.kv_loc_plan,
            req_pool_indices=forward_batch.req_pool_indices[:slots],
            seq_lens=tables.keys,
            indptr=tables.kv_indptr,
            out=kv_indices,
            kind=IdSpaceKind.FULL,
        )
        heads = self.indices_updater_prefill
        if in_capture:
            # A full plan first: it makes what the later ones use.
            wrapper.begin_forward(
                tables.qo_indptr,
                tables.kv_indptr,
                kv_indices,
                self.kv_last_page_len[:slots],
                heads.num_qo_heads,
                heads.num_kv_heads,
                heads.head_dim,
                1,  # page size: the page table names single slots
                q_data_type=heads.q_data_type,
                kv_data_type=heads.data_type,
                non_blocking=True,
            )
        plan_on_host(wrapper, heads, lengths.host_plan, equal_rows=key.rows)


@functools.cache
def _equal_rows(slots: int, rows: int | None, device: torch.device) -> Tensor:
    return torch.full((slots,), rows or 0, dtype=torch.int32, device=device)


def _mask_bytes(rows: int, keys: int) -> int:
    return -(-rows * keys // _BYTE_BITS)


def host_lengths(forward_batch: Any, layout: RaggedVerifyLayout, *, slots: int, in_capture: bool) -> Lengths:
    """Return the lengths of `layout`'s requests and of the empty slots after them, from the host's copies.

    The batch's host lengths already include the rows of live requests (verify_pass.py); those of empty slots are as
    captured. An overlapped scheduler keeps no host lengths; then they are read from the device.
    """
    live = torch.tensor(layout.verify_lens_cpu, dtype=torch.int32)
    # The same padding as on the device, computed on the host.
    rows = PaddedToBucket.torch(
        verify_lens=live, graph_num_tokens=layout.graph_num_tokens, bs=len(live), padded_bs=slots
    )
    if forward_batch.seq_lens_cpu is None:
        return Lengths(forward_batch.seq_lens[:slots].cpu().int(), rows)
    committed = forward_batch.seq_lens_cpu[:slots].int()
    if not in_capture:
        committed = committed - pad(live, (0, slots - len(live)))
    return Lengths(committed, rows)


def equal_lengths(forward_batch: Any, key: GraphKey, *, in_capture: bool) -> Lengths:
    """Return the lengths of `key`'s slots, all of whose requests have equal rows, as `host_lengths` does."""
    assert key.rows is not None
    rows = torch.full((key.slots,), key.rows, dtype=torch.int32)
    if forward_batch.seq_lens_cpu is None:
        return Lengths(forward_batch.seq_lens[: key.slots].cpu().int(), rows)
    committed = forward_batch.seq_lens_cpu[: key.slots].int()
    if not in_capture:
        live = key.slots - forward_batch.num_padding
        committed = torch.cat((committed[:live] - key.rows, committed[live:]))
    return Lengths(committed, rows)


def install(*, trees: bool, proposals: bool) -> None:
    """Replace SGLang's backend by ours; with `trees`, capture each bucket's second graph too.

    With `proposals` as well, a draft's: its graphs end with the rows to verify, of a chain or a tree.
    """
    stock_backend = attention_registry.ATTENTION_BACKENDS[_NAME]

    def create(runner: Any) -> Any:
        if runner.use_mla_backend:
            return stock_backend(runner)
        return LadderFlashInfer(runner, init_new_workspace=runner.init_new_workspace)

    register_attention_backend(_NAME)(create)
    if not trees:
        return
    stock_variants = decode_cuda_graph_runner.create_attention_graph_variants

    def create_variants(hf_config: Any) -> Any:
        is_draft = any("DSpark" in name for name in getattr(hf_config, "architectures", None) or ())
        if is_draft:
            return DraftVariants() if proposals else stock_variants(hf_config)
        return VerifyVariants()

    decode_cuda_graph_runner.create_attention_graph_variants = create_variants
