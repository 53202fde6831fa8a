"""From settings to what the policy decides by: tiers, the ladder's rungs, and the deployment's step times."""

from pathlib import Path

from sparktier.cluster.policy.policy_types import PolicyConfig, TierRule
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ArtifactError
from sparktier.configs.plan_keys import Rung
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import HIGHEST_RUNG
from sparktier.configs.step_times import read_table
from sparktier.serving.deployment.planner import draft_block, prefill_chunk_tokens
from sparktier.serving.engine.rank_options import DEFAULT_RUNNING_REQUESTS

# What DSpark drafters were trained for; a longer block would only be cut by the engine.
_USUAL_BLOCK = 5


def policy_config(settings: Settings) -> PolicyConfig:
    """Return the operator's choices in `settings`, those of the weights' own block length included."""
    controller = settings.controller
    return PolicyConfig(
        tiers={tier_id: TierRule.of(tier) for tier_id, tier in settings.tiers.items()},
        default_tier=settings.default_tier,
        drafted=_drafted(settings),
        tree_nodes=settings.speculation.tree_rows - 1,
        chunk_tokens=prefill_chunk_tokens(settings),
        most_users=settings.replicas.max_running_requests or DEFAULT_RUNNING_REQUESTS,
        hold_ms=controller.hold_ms,
        margin_frac=controller.margin_frac,
        caution_frac=controller.caution_frac,
        stale_ms=controller.stale_ms,
        skew_ms=controller.skew_ms,
        ttl_ms=controller.ttl_ms,
        probe_every_ms=100 * controller.tick_ms,
    )


def step_times(settings: Settings) -> StepTimeModel | None:
    """Return the deployment's step times; None where the settings name none.

    Raises:
        ArtifactError: there is no such table.
    """
    path = settings.speculation.step_times_path
    return None if path is None else StepTimeModel(read_table(Path(path)))


def _drafted(settings: Settings) -> dict[int, int]:
    """Tokens in a row that each rung of the ladder drafts; rung 0 alone where depth is fixed."""
    speculation = settings.speculation
    if speculation.method == "dspark_native" and speculation.verification == "static":
        return {int(Rung.OFF): 0}
    highest = HIGHEST_RUNG.get(speculation.method, int(Rung.OFF))
    block = _block(settings)
    depths = {Rung.OFF: 0, Rung.CHAIN_SHORT: min(speculation.short_tokens, block), Rung.CHAIN: block, Rung.TREE: block}
    return {int(rung): tokens for rung, tokens in depths.items() if rung <= highest}


def _block(settings: Settings) -> int:
    speculation = settings.speculation
    try:
        trained = None if speculation.draft_path is None else draft_block(speculation.draft_path)
    except ArtifactError:
        # Weights that are elsewhere: the hub's, or another node's.
        trained = None
    known = [tokens for tokens in (speculation.block_tokens, trained) if tokens is not None]
    return min(known, default=_USUAL_BLOCK)
