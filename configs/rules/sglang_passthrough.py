"""What `replicas.sglang_args` may name: any SGLang 0.5.23 argument that no key of ours sets and no promise forbids.

The names are in `sglang-0.5.23-arguments.txt`, which a test compares with the installed package.
"""

import difflib
import functools
from collections.abc import Iterator
from importlib import resources

from sparktier.configs.errors import Problem

_SET_BY_KEY = {
    "model_path": "model.path",
    "revision": "model.revision",
    "served_model_name": "model.served_name",
    "dtype": "model.dtype",
    "quantization": "model.quantization",
    "kv_cache_dtype": "model.kv_dtype",
    "context_length": "model.context_tokens",
    "trust_remote_code": "model.trust_remote_code",
    "tool_call_parser": "model.tool_call_parser",
    "dp_size": "replicas.count",
    "nnodes": "replicas.nodes",
    "tp_size": "replicas.tensor_parallel",
    "ep_size": "replicas.expert_parallel",
    "attn_dp_size": "replicas.attention_data_parallel",
    "enable_dp_attention": "replicas.attention_data_parallel",
    "device": "replicas.device",
    "max_running_requests": "replicas.max_running_requests",
    "enable_priority_scheduling": "tiers",
    "disable_priority_preemption": "tiers",
    "priority_scheduling_preemption_threshold": "tiers",
    "default_priority_value": "tiers",
    "max_total_tokens": "replicas.kv_tokens",
    "mem_fraction_static": "replicas.memory_frac",
    "chunked_prefill_size": "replicas.chunked_prefill_tokens",
    "page_size": "replicas.page_tokens",
    "attention_backend": "replicas.attention_backend",
    "moe_a2a_backend": "replicas.moe_all_to_all",
    "speculative_algorithm": "speculation.method",
    "speculative_draft_model_path": "speculation.draft_path",
    "speculative_draft_model_revision": "speculation.draft_revision",
    "speculative_dspark_block_size": "speculation.block_tokens",
    "speculative_num_steps": "speculation.block_tokens",
    "speculative_num_draft_tokens": "speculation.block_tokens",
    "speculative_dspark_sps_table_path": "speculation.step_cost_path",
    "speculative_dspark_confidence_sts_path": "speculation.calibration_path",
    "enable_return_aux_hidden_states": "training.target_layer_ids",
    "return_aux_hidden_state_layer_ids": "training.target_layer_ids",
    "host": "server.host",
    "port": "server.port",
}

_SET_BY_LAUNCHER = frozenset({
    "base_gpu_id", "dist_init_addr", "enable_dp_lm_head", "enable_metrics", "gpu_id_step",
    "grpc_mode", "grpc_port", "nccl_port", "node_rank", "sidecar", "smg_grpc_mode", "speculative_eagle_topk",
    "tokenizer_path", "use_ray",
})  # fmt: skip

_MADE_EACH_RUN = frozenset({"admin_api_key", "api_key"})

_LOSSY = "loosens acceptance, so speculation would change the model's answers; sparktier is lossless"
_DISAGGREGATION = "separates prefill from decode, which sparktier does not serve"
_PROCESSES = "starts more HTTP processes, which have neither sparktier's routes nor its keys"
_PIPELINE = "splits the model by layers (pipeline parallelism), which sparktier does not serve"
_CONTEXT = "adds a parallel dimension that the placement of ranks does not know"
_LORA = "loads LoRA adapters, which sparktier does not serve"
_IMAGES = "is for image, video or audio input, which sparktier does not serve"

# By prefix of the argument's name.
_REFUSED = {
    "speculative_accept_threshold_": _LOSSY,
    "disaggregation_": _DISAGGREGATION,
    "enable_pd": _DISAGGREGATION,
    "encoder_": _DISAGGREGATION,
    "language_only": _DISAGGREGATION,
    "pp_": _PIPELINE,
    "attn_cp_size": _CONTEXT,
    "dcp_": _CONTEXT,
    "dwdp_size": _CONTEXT,
    "enable_prefill_cp": _CONTEXT,
    "moe_dp_size": _CONTEXT,
    "enable_lora": _LORA,
    "lora_": _LORA,
    "max_lora": _LORA,
    "uno_lora_path": _LORA,
    "tokenizer_worker_num": _PROCESSES,
    "enable_multimodal": _IMAGES,
    "mm_": _IMAGES,
    "limit_mm_data_per_request": _IMAGES,
}


@functools.cache
def known_arguments() -> tuple[str, ...]:
    """Return the public field names of SGLang 0.5.23's `ServerArgs`, sorted."""
    file = resources.files("sparktier.configs").joinpath("sglang-0.5.23-arguments.txt")
    return tuple(file.read_text(encoding="utf-8").split())


def passthrough_problems(names: Iterator[str] | list[str]) -> Iterator[Problem]:
    """Yield a problem for each of `names` that `sglang_args` may not hold."""
    for name in names:
        broken = _broken_rule(name)
        if broken is not None:
            rule, cure = broken
            yield Problem(f"replicas.sglang_args.{name}", rule, name, cure)


def _broken_rule(name: str) -> tuple[str, str] | None:
    if name not in known_arguments():
        near = difflib.get_close_matches(name, known_arguments(), n=1)
        cure = f"Did you mean {near[0]}?" if near else "Write a field of SGLang's ServerArgs, with underscores."
        return "is not an argument of SGLang 0.5.23", cure
    for prefix, reason in _REFUSED.items():
        if name.startswith(prefix):
            return f"is refused: it {reason}", "Remove it."
    if name in _SET_BY_KEY:
        return "has a key of its own", f"Set {_SET_BY_KEY[name]} instead."
    if name in _MADE_EACH_RUN:
        return "is made by sparktier anew for each run", "Remove it, and read it in the keys file of the run."
    if name in _SET_BY_LAUNCHER:
        return "is set by sparktier itself", "Remove it."
    return None
