"""What the ranks' verify planner is given: the deployment's own step times, and which survivals share out rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sparktier.cluster.feasibility import fastest_alone_tok_s, largest_chunk_tokens
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.plan_keys import Rung
from sparktier.configs.settings.settings import Settings
from sparktier.configs.step_times import StepTimeTable, read_table, require_own
from sparktier.serving.deployment.model_sizes import ModelFacts, read_config
from sparktier.serving.deployment.resolved import Resolved
from sparktier.serving.deployment.table_key import table_key
from sparktier.serving.engine.rank_options import PlannerOptions

# SGLang prefills no fewer at a time than this; more than this is a chunk in name only.
_LEAST_CHUNK_TOKENS, _MOST_CHUNK_TOKENS = 16, 1 << 17


def planner_options(resolved: Resolved) -> PlannerOptions | None:
    """Return what the planner is given; None without `speculation.step_times_path`. Reads all weights: their digests.

    Raises:
        ArtifactError: there is no such table, or it is another deployment's.
        ConfigError: a tier promises what not even one user alone could get, or a stall that the least chunk exceeds.
    """
    speculation = resolved.settings.speculation
    if speculation.step_times_path is None:
        return None
    table = read_table(Path(speculation.step_times_path))
    require_own(table, table_key(resolved), f"speculation.step_times_path {speculation.step_times_path}")
    require_possible_promises(resolved)
    live = speculation.live_shares
    return PlannerOptions(table=table, live=resolved.device == "cpu" if live is None else live)


def require_possible_promises(resolved: Resolved) -> None:
    """Refuse tiers that this deployment can't serve, by its table of step times; without one all pass.

    Raises:
        ArtifactError: there is no such table.
        ConfigError: a tier promises what not even one user alone could get, or a stall that the least chunk exceeds.
    """
    path = resolved.settings.speculation.step_times_path
    if path is None:
        return
    most_tok_s = most_alone_tok_s(resolved.settings, read_table(Path(path)), draft_block(resolved.draft))
    if problems := list(_broken_promises(resolved.settings, most_tok_s)):
        raise ConfigError(problems)
    prefill_chunk_tokens(resolved.settings)


def prefill_chunk_tokens(settings: Settings) -> int | None:
    """Return the most prompt tokens that a step prefills: the settings', or what the strictest tier's stall leaves.

    None leaves it to SGLang.

    Raises:
        ArtifactError: there is no table of step times where the settings name one.
        ConfigError: even the least chunk stalls its users for longer.
    """
    replicas, path = settings.replicas, settings.speculation.step_times_path
    stalls_ms = {tier.max_stall_ms: tier_id for tier_id, tier in settings.tiers.items() if tier.max_stall_ms}
    if replicas.chunked_prefill_tokens is not None or path is None or not stalls_ms:
        return replicas.chunked_prefill_tokens
    times, strictest_ms = StepTimeModel(read_table(Path(path))), min(stalls_ms)
    pages = (replicas.page_tokens or 1) * replicas.attention_data_parallel
    unit_tokens = -(-_LEAST_CHUNK_TOKENS // pages) * pages
    most_tokens = settings.model.context_tokens or _MOST_CHUNK_TOKENS
    chunk = largest_chunk_tokens(
        times, max_stall_ms=strictest_ms, unit_tokens=unit_tokens, most_tokens=max(unit_tokens, most_tokens)
    )
    if chunk == 0:
        where = f"tiers.{stalls_ms[strictest_ms]}.max_stall_ms"
        least_ms = times.prefill_ms(unit_tokens)
        rule = f"must be at least {least_ms:.3g}, what prefill of {unit_tokens} tokens takes, by {path}"
        raise ConfigError([Problem(where, rule, str(strictest_ms), "Raise it, or leave it out.")])
    return chunk


def draft_block(draft: str | None) -> int | None:
    """Return how many tokens the checkpoint in the folder `draft` drafts at once; None where there is none.

    Raises:
        ArtifactError: the folder has no config.
    """
    return None if draft is None else ModelFacts(read_config(draft), {}, {}).draft_block


def most_alone_tok_s(settings: Settings, table: StepTimeTable, block_tokens: int | None) -> float | None:
    """Return a speed that not even one user alone exceeds; None where the length of a draft is unknown.

    block_tokens: what the draft's checkpoint drafts at once.
    """
    drafted = _drafted_tokens(settings, block_tokens)
    if drafted is None:
        return None
    measured = {rung: most for rung, most in drafted.items() if rung in table.draft_ms}
    return fastest_alone_tok_s(StepTimeModel(table), measured)


def _broken_promises(settings: Settings, most_tok_s: float | None) -> Iterator[Problem]:
    for tier_id, tier in settings.tiers.items():
        if most_tok_s is not None and tier.promised_tok_s > most_tok_s:
            yield Problem(
                f"tiers.{tier_id}.promise_tok_s",
                f"must be at most {most_tok_s:.3g}, what one user alone reaches with every draft accepted, by "
                f"{settings.speculation.step_times_path}",
                f"{tier.promised_tok_s:g}",
                "Lower it, or promise it on a faster deployment.",
            )


def _drafted_tokens(settings: Settings, draft_block: int | None) -> Mapping[int, int] | None:
    """Tokens in a row that each rung drafts at most; None where the block's length is unknown."""
    speculation = settings.speculation
    blocks = [block for block in (speculation.block_tokens, draft_block) if block is not None]
    if not blocks:
        return None
    block = min(blocks)
    return {Rung.OFF: 0, Rung.CHAIN_SHORT: min(speculation.short_tokens, block), Rung.CHAIN: block, Rung.TREE: block}
