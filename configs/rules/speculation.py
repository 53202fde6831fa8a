"""Rules on drafting: what each method needs, and where SGLang can't trim verification at run time. Pure.

Files cited are SGLang 0.5.23's, under `sglang/srt/arg_groups/`.
"""

from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import DRAFTED_LADDERS, HIGHEST_RUNG, LADDERS

_DSPARK_ATTENTION_DP = ("none", "megamoe", "mori")


def _keys_fit_method(settings: Settings) -> Iterator[Problem]:
    speculation = settings.speculation
    drafting = ("draft_path", "draft_revision", "block_tokens")
    ladder = ("short_tokens", "safe_rung", "step_times_path", "live_shares", "canary", "canary_noise_frac")
    drafted = (*ladder, "accept_rule", "prompt_lookup")
    native = ("verification", "step_cost_path", "calibration_path")
    used = {
        "none": (),
        "chain": (*drafting, *drafted),
        "tree": (*drafting, *drafted, "tree_rows", "tree_parents", "tree_children"),
        "ngram": ("block_tokens", *ladder),
        "dspark_native": (*drafting, *native, "safe_rung", "step_times_path", "live_shares"),
        "standalone": drafting,
    }[speculation.method]
    given = speculation.model_dump(exclude_defaults=True, exclude={"method", *used})
    for key, value in given.items():
        yield Problem(
            f"speculation.{key}",
            f"has no meaning with speculation.method {speculation.method}",
            str(value),
            "Remove it, or choose another method.",
        )


def _live_shares_need_a_planner(settings: Settings) -> Iterator[Problem]:
    speculation = settings.speculation
    if speculation.live_shares is not None and speculation.step_times_path is None:
        yield Problem(
            "speculation.live_shares",
            "has no meaning without speculation.step_times_path",
            str(speculation.live_shares).lower(),
            "Remove it, or measure step times with `sparktier profile` and name their file.",
        )


def _lookup_needs_match(settings: Settings) -> Iterator[Problem]:
    # The ratio rule is exact for children that were drawn from a known distribution alone.
    speculation = settings.speculation
    if speculation.prompt_lookup and speculation.accept_rule == "ratio":
        yield Problem(
            "speculation.accept_rule",
            "must be match with speculation.prompt_lookup: what a lookup finds is not drawn from a distribution",
            "ratio",
            "Set accept_rule: match, or prompt_lookup: false.",
        )


_DRAFTERS = {
    **dict.fromkeys(DRAFTED_LADDERS, ("the DSpark drafter", "Set it to a checkpoint that was trained for this model.")),
    "standalone": ("the small model that drafts", "Set it to a model that shares the target's tokenizer."),
}


def _method_has_draft(settings: Settings) -> Iterator[Problem]:
    speculation = settings.speculation
    if speculation.method in _DRAFTERS and speculation.draft_path is None:
        what, cure = _DRAFTERS[speculation.method]
        yield Problem(
            "speculation.draft_path", f"must name {what} with speculation.method {speculation.method}", "null", cure
        )


def _short_rung_is_shorter(settings: Settings) -> Iterator[Problem]:
    speculation = settings.speculation
    block = speculation.drafted_tokens
    if speculation.method in LADDERS and block is not None and speculation.short_tokens > block:
        yield Problem(
            "speculation.short_tokens",
            f"must not exceed speculation.block_tokens, which is {block}",
            str(speculation.short_tokens),
            "Lower it, or draft longer blocks.",
        )


def _safe_rung_is_on_the_ladder(settings: Settings) -> Iterator[Problem]:
    speculation = settings.speculation
    highest = HIGHEST_RUNG.get(speculation.method)
    if highest is not None and speculation.safe_rung > highest:
        yield Problem(
            "speculation.safe_rung",
            f"must be at most {highest}, where the ladder of speculation.method {speculation.method} ends",
            str(speculation.safe_rung),
            "Lower it.",
        )


def _standalone_has_no_groups(settings: Settings) -> Iterator[Problem]:
    # speculative_hook.py, _handle_eagle_family.
    groups = settings.replicas.attention_data_parallel
    if settings.speculation.method == "standalone" and groups > 1:
        yield Problem(
            "replicas.attention_data_parallel",
            "must be 1 with speculation.method standalone: SGLang has none for such a draft",
            str(groups),
            "Set it to 1, or choose another method.",
        )


def _lookup_has_no_groups(settings: Settings) -> Iterator[Problem]:
    speculation, groups = settings.speculation, settings.replicas.attention_data_parallel
    if groups > 1 and (speculation.prompt_lookup or speculation.method == "ngram"):
        yield Problem(
            "replicas.attention_data_parallel",
            "must be 1 with prompt lookup (speculation.method ngram, or prompt_lookup), which is not tried under it",
            str(groups),
            "Set it to 1, or draft without prompt lookup.",
        )


def _dspark_all_to_all(settings: Settings) -> Iterator[Problem]:
    # speculative_hook.py, _handle_dspark; our ladder drafts and verifies by SGLang's DSpark, so it keeps its rules.
    replicas, method = settings.replicas, settings.speculation.method
    if replicas.attention_data_parallel == 1:
        return
    if method == "dspark_native" and replicas.moe_all_to_all not in _DSPARK_ATTENTION_DP:
        yield Problem(
            "replicas.moe_all_to_all",
            "must be none, megamoe or mori for DSpark under attention-DP: SGLang runs no other",
            replicas.moe_all_to_all,
            "Use one of the three, or attention_data_parallel: 1.",
        )
    if method in LADDERS and replicas.moe_all_to_all != "none":
        yield Problem(
            "replicas.moe_all_to_all",
            f"must be none with speculation.method {method} under attention-DP: with all-to-all SGLang verifies whole"
            " blocks there, and a ladder's rows differ from request to request",
            replicas.moe_all_to_all,
            "Set it to none, or attention_data_parallel to 1.",
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
    # speculative_hook.py: under static verification SGLang ignores its own two with a warning.
    speculation = settings.speculation
    for key in ("step_cost_path", "calibration_path", "step_times_path"):
        value = getattr(speculation, key)
        if speculation.method == "dspark_native" and value is not None and speculation.verification == "static":
            yield Problem(
                f"speculation.{key}",
                "has no effect with verification static, which budgets nothing",
                value,
                "Set verification: compact, or remove it.",
            )


def _one_planner_for_one_group(settings: Settings) -> Iterator[Problem]:
    speculation, groups = settings.speculation, settings.replicas.attention_data_parallel
    if speculation.step_times_path is None:
        return
    if speculation.step_cost_path is not None:
        yield Problem(
            "speculation.step_cost_path",
            "has no effect beside speculation.step_times_path, by which our planner shares out rows",
            speculation.step_cost_path,
            "Keep one of the two.",
        )
    if groups > 1 and speculation.method == "dspark_native":
        yield Problem(
            "speculation.step_times_path",
            f"needs replicas.attention_data_parallel 1 with speculation.method dspark_native, where it is {groups}:"
            " SGLang's worker agrees with no other group on its rows",
            speculation.step_times_path,
            "Remove it, set attention_data_parallel: 1, or choose the method chain.",
        )


RULES = (
    Rule(("speculation",), _keys_fit_method),
    Rule(("speculation.method", "speculation.draft_path"), _method_has_draft),
    Rule(("speculation",), _short_rung_is_shorter),
    Rule(("speculation",), _safe_rung_is_on_the_ladder),
    Rule(("speculation",), _live_shares_need_a_planner),
    Rule(("speculation.method", "replicas.attention_data_parallel"), _standalone_has_no_groups),
    Rule(("speculation",), _lookup_needs_match),
    Rule(("speculation", "replicas.attention_data_parallel"), _lookup_has_no_groups),
    Rule(
        ("speculation.method", "replicas.attention_data_parallel", "replicas.moe_all_to_all"),
        _dspark_all_to_all,
    ),
    Rule(
        ("speculation.verification", "replicas.attention_data_parallel", "replicas.moe_all_to_all"),
        _ladder_needs_ragged_verify,
    ),
    Rule(("speculation",), _tables_need_compact),
    Rule(("speculation", "replicas.attention_data_parallel"), _one_planner_for_one_group),
)
