"""Rules on drafting: what each method needs, and where SGLang can't trim verification at run time. Pure.

Files cited are SGLang 0.5.23's, under `sglang/srt/arg_groups/`.
"""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rule import Rule
from sparktier.configs.settings import Settings

_DSPARK_ATTENTION_DP = ("none", "megamoe", "mori")


def _keys_fit_method(settings: Settings) -> Iterator[Problem]:
    speculation = settings.speculation
    used = {"none": (), "standalone": ("draft_path", "draft_revision", "block_tokens")}.get(speculation.method)
    if used is None:
        return
    given = speculation.model_dump(exclude_defaults=True, exclude={"method", *used})
    for key, value in given.items():
        yield Problem(
            f"speculation.{key}",
            f"has no meaning with speculation.method {speculation.method}",
            str(value),
            "Remove it, or choose another method.",
        )


def _standalone_has_draft(settings: Settings) -> Iterator[Problem]:
    if settings.speculation.method == "standalone" and settings.speculation.draft_path is None:
        yield Problem(
            "speculation.draft_path",
            "must name the small model that drafts with speculation.method standalone",
            "null",
            "Set it to a model that shares the target's tokenizer.",
        )


def _standalone_without_attention_groups(settings: Settings) -> Iterator[Problem]:
    # speculative_hook.py, _handle_eagle_family.
    groups = settings.replicas.attention_data_parallel
    if settings.speculation.method == "standalone" and groups > 1:
        yield Problem(
            "replicas.attention_data_parallel",
            "must be 1 with speculation.method standalone: SGLang has no attention-DP for a standalone draft",
            str(groups),
            "Set it to 1, or choose another method.",
        )


def _dspark_all_to_all(settings: Settings) -> Iterator[Problem]:
    # speculative_hook.py, _handle_dspark.
    replicas = settings.replicas
    if settings.speculation.method != "dspark_native" or replicas.attention_data_parallel == 1:
        return
    if replicas.moe_all_to_all not in _DSPARK_ATTENTION_DP:
        yield Problem(
            "replicas.moe_all_to_all",
            "must be none, megamoe or mori for DSpark under attention-DP: SGLang runs no other",
            replicas.moe_all_to_all,
            "Use one of the three, or attention_data_parallel: 1.",
        )


def _ladder_needs_ragged_verify(settings: Settings) -> Iterator[Problem]:
    # speculative_hook.py, _handle_dspark: with attention-DP, any all-to-all backend forces SGLANG_RAGGED_VERIFY_MODE
    # static, so a step can't verify less than the whole block and a run-time ladder of depths has nothing to turn.
    replicas = settings.replicas
    if settings.speculation.verification == "compact" and replicas.attention_data_parallel > 1:
        if replicas.moe_all_to_all == "none":
            return
        yield Problem(
            "speculation.verification",
            "must be static under attention-DP with an all-to-all backend: SGLang verifies whole blocks there, so"
            " depth can't change at run time",
            "compact",
            "Set verification: static, or moe_all_to_all: none.",
        )


def _tables_need_compact(settings: Settings) -> Iterator[Problem]:
    # speculative_hook.py: under static verification SGLang ignores both with a warning.
    speculation = settings.speculation
    for key in ("step_cost_path", "calibration_path"):
        value = getattr(speculation, key)
        if speculation.method == "dspark_native" and value is not None and speculation.verification == "static":
            yield Problem(
                f"speculation.{key}",
                "has no effect with verification static, which budgets nothing",
                value,
                "Set verification: compact, or remove it.",
            )


RULES = (
    Rule(("speculation",), _keys_fit_method),
    Rule(("speculation.method", "speculation.draft_path"), _standalone_has_draft),
    Rule(("speculation.method", "replicas.attention_data_parallel"), _standalone_without_attention_groups),
    Rule(
        ("speculation.method", "replicas.attention_data_parallel", "replicas.moe_all_to_all"),
        _dspark_all_to_all,
    ),
    Rule(
        ("speculation.verification", "replicas.attention_data_parallel", "replicas.moe_all_to_all"),
        _ladder_needs_ragged_verify,
    ),
    Rule(("speculation",), _tables_need_compact),
)
