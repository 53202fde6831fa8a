"""Rules on how one replica's ranks, groups, requests and pages divide. Pure.

Files cited are SGLang 0.5.23's, under `sglang/srt/arg_groups/`.
"""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.rules.sglang_passthrough import passthrough_problems
from sparktier.configs.settings.settings import Settings

_ROWS_OF_UNKNOWN_DRAFT = 17  # blocks of published drafts have 7 to 16 tokens


def _divides_ranks(key: str, reason: str, cure: str) -> Rule:
    """Return the rule that `replicas.KEY` divides the ranks; `{ranks}` in `cure` is their number."""

    def check(settings: Settings) -> Iterator[Problem]:
        ranks, parts = settings.replicas.tensor_parallel, getattr(settings.replicas, key)
        if ranks % parts:
            rule = f"must divide tensor_parallel ({ranks}), since {reason}"
            yield Problem(f"replicas.{key}", rule, str(parts), cure.format(ranks=ranks))

    return Rule(("replicas.tensor_parallel", f"replicas.{key}"), check)


def _all_to_all_spans_ranks(settings: Settings) -> Iterator[Problem]:
    # SGLang would silently set ep_size to tp_size (arg_groups/overrides.py, _a2a_ep_size).
    replicas = settings.replicas
    if replicas.moe_all_to_all != "none" and replicas.expert_parallel != replicas.tensor_parallel:
        yield Problem(
            "replicas.expert_parallel",
            f"must equal tensor_parallel ({replicas.tensor_parallel}) with moe_all_to_all {replicas.moe_all_to_all},"
            " which spans all ranks",
            str(replicas.expert_parallel),
            f"Set expert_parallel: {replicas.tensor_parallel}, or moe_all_to_all: none.",
        )


def _requests_fill_attention_groups(settings: Settings) -> Iterator[Problem]:
    requests, groups = settings.replicas.max_running_requests, settings.replicas.attention_data_parallel
    if requests is not None and requests % groups:
        yield Problem(
            "replicas.max_running_requests",
            f"must be a multiple of attention_data_parallel ({groups}), since groups take equal shares",
            str(requests),
            f"Use {max(1, requests // groups) * groups}.",
        )


def kv_tokens_of_longest(settings: Settings) -> int:
    """Return the cache tokens that one request of `model.context_tokens` needs, with the rows of two steps at once.

    The engine's own arithmetic is in serving/engine/requests/context_limit.py.
    """
    rows = settings.speculation.rows_per_request or _ROWS_OF_UNKNOWN_DRAFT
    page = settings.replicas.page_tokens or 1
    return (settings.model.context_tokens or 0) + max(2 * rows + page, 2 * page)


def _longest_request_fits(settings: Settings) -> Iterator[Problem]:
    kv_tokens, context = settings.replicas.kv_tokens, settings.model.context_tokens
    if kv_tokens is not None and context is not None and kv_tokens < kv_tokens_of_longest(settings):
        yield Problem(
            "replicas.kv_tokens",
            f"must hold one request of model.context_tokens ({context}) and what its steps reserve",
            str(kv_tokens),
            f"Use {kv_tokens_of_longest(settings)} or more, or a smaller model.context_tokens.",
        )


def _chunk_fills_pages(settings: Settings) -> Iterator[Problem]:
    # SGLang divides the chunk among attention groups (parallel_hook.py), then wants whole pages (validation_hook.py).
    replicas = settings.replicas
    if replicas.page_tokens is None or replicas.chunked_prefill_tokens is None:
        return
    unit = replicas.page_tokens * replicas.attention_data_parallel
    if replicas.chunked_prefill_tokens % unit:
        yield Problem(
            "replicas.chunked_prefill_tokens",
            f"must be a multiple of page_tokens x attention_data_parallel ({unit}), since each group prefills pages",
            str(replicas.chunked_prefill_tokens),
            f"Use {-(-replicas.chunked_prefill_tokens // unit) * unit}.",
        )


def _passthrough_is_free(settings: Settings) -> Iterator[Problem]:
    yield from passthrough_problems(list(settings.replicas.sglang_args))


RULES = (
    _divides_ranks("nodes", "every node holds as many ranks", "Change one of the two."),
    _divides_ranks("expert_parallel", "each rank belongs to one group of experts", "Use a divisor of {ranks}."),
    _divides_ranks("attention_data_parallel", "each rank belongs to one attention group", "Use a divisor of {ranks}."),
    Rule(
        ("replicas.moe_all_to_all", "replicas.tensor_parallel", "replicas.expert_parallel"),
        _all_to_all_spans_ranks,
    ),
    Rule(("replicas.max_running_requests", "replicas.attention_data_parallel"), _requests_fill_attention_groups),
    Rule(
        (
            "replicas.kv_tokens",
            "model.context_tokens",
            "replicas.page_tokens",
            "speculation.method",
            "speculation.block_tokens",
            "speculation.tree_rows",
        ),
        _longest_request_fits,
    ),
    Rule(
        ("replicas.page_tokens", "replicas.chunked_prefill_tokens", "replicas.attention_data_parallel"),
        _chunk_fills_pages,
    ),
    Rule(("replicas.sglang_args",), _passthrough_is_free),
)
