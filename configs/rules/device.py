"""Rules on what a device can run: CPU ranks, and the row buffers of low-latency all-to-all kernels. Pure.

Files cited are SGLang 0.5.23's, under `sglang/srt/`.
"""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS

# megamoe and mori size their buffers by the prefill chunk instead.
_ROW_BOUNDED = ("deepep", "mooncake", "nixl")


def _cpu_runs_plain_torch(settings: Settings) -> Iterator[Problem]:
    if settings.replicas.device != "cpu":
        return
    wrong = (
        ("model.quantization", settings.model.quantization, (None,), "quantised kernels need a GPU"),
        ("model.kv_dtype", settings.model.kv_dtype, ("auto", "bfloat16"), "torch attention reads no 8-bit KV cache"),
        ("replicas.moe_all_to_all", settings.replicas.moe_all_to_all, ("none",), "all-to-all kernels need a GPU"),
        (
            "replicas.attention_backend",
            settings.replicas.attention_backend,
            (None, "torch_native"),
            "the others need a GPU",
        ),
        # torch_native has no verify pass (layers/attention/torch_native_backend.py); ours has.
        ("speculation.method", settings.speculation.method, ("none", *LADDERS), "SGLang verifies drafts on a GPU only"),
    )
    for path, value, allowed, reason in wrong:
        if value not in allowed:
            words = " or ".join("null" if choice is None else choice for choice in allowed)
            yield Problem(
                path, f"must be {words} with replicas.device cpu: {reason}", str(value), f"Set it to {words}."
            )


def _trees_need_flashinfer(settings: Settings) -> Iterator[Problem]:
    replicas = settings.replicas
    if replicas.device != "cuda" or settings.speculation.method != "tree" or replicas.attention_backend == "flashinfer":
        return
    yield Problem(
        "replicas.attention_backend",
        "must be flashinfer with speculation.method tree: no other takes a tree's mask",
        str(replicas.attention_backend),
        "Set it to flashinfer, or speculation.method to chain.",
    )


def rows_per_rank(settings: Settings) -> int | None:
    """Return the most rows that one rank sends to experts in a decode or verify step.

    Requests of an attention group times rows of each, scattered over the ranks that share the group. None: a part of
    it is left to SGLang or to a checkpoint.
    """
    requests, rows = settings.replicas.max_running_requests, settings.speculation.rows_per_request
    if requests is None or rows is None:
        return None
    group_rows = requests // settings.replicas.attention_data_parallel * rows
    return -(-group_rows // max(1, settings.replicas.attention_tensor_parallel))


def _rows_fit_dispatch(settings: Settings) -> Iterator[Problem]:
    # The buffer is fixed at start (layers/moe/token_dispatcher/deepep.py): one row more is a crash under load.
    replicas = settings.replicas
    if replicas.moe_all_to_all not in _ROW_BOUNDED or replicas.sglang_args.get("deepep_mode") == "normal":
        return
    if replicas.max_running_requests is None:
        yield Problem(
            "replicas.max_running_requests",
            f"must be set with moe_all_to_all {replicas.moe_all_to_all}, whose row buffer it has to fit",
            "null",
            "Set it.",
        )
    elif settings.speculation.rows_per_request is None:
        yield Problem(
            "speculation.block_tokens",
            f"must be set with moe_all_to_all {replicas.moe_all_to_all}, whose row buffer it has to fit",
            "null",
            "Set it to the draft checkpoint's block size.",
        )
    elif (rows := rows_per_rank(settings)) and rows > replicas.dispatch_rows_per_rank:
        yield Problem(
            "replicas.dispatch_rows_per_rank",
            f"must hold the {rows} rows that a rank sends to experts when all requests run",
            str(replicas.dispatch_rows_per_rank),
            "Lower max_running_requests or speculation.block_tokens, or raise it (1024 at most).",
        )


RULES = (
    Rule(("replicas.device", "replicas.attention_backend", "speculation.method"), _trees_need_flashinfer),
    Rule(
        (
            "replicas.device",
            "model.quantization",
            "model.kv_dtype",
            "replicas.moe_all_to_all",
            "replicas.attention_backend",
            "speculation.method",
        ),
        _cpu_runs_plain_torch,
    ),
    Rule(
        (
            "replicas.moe_all_to_all",
            "replicas.max_running_requests",
            "replicas.dispatch_rows_per_rank",
            "replicas.tensor_parallel",
            "replicas.attention_data_parallel",
            "replicas.sglang_args",
            "speculation.method",
            "speculation.block_tokens",
        ),
        _rows_fit_dispatch,
    ),
)
