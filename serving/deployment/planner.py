"""What the ranks' verify planner is given: the deployment's own step times, and which survivals share out rows."""

from pathlib import Path

from sparktier.configs.step_times import read_table, require_own
from sparktier.serving.deployment.resolved import Resolved
from sparktier.serving.deployment.table_key import table_key
from sparktier.serving.engine.rank_options import PlannerOptions


def planner_options(resolved: Resolved) -> PlannerOptions | None:
    """Return what the planner is given; None without `speculation.step_times_path`. Reads all weights: their digests.

    Raises:
        ArtifactError: there is no such table, or it is another deployment's.
    """
    speculation = resolved.settings.speculation
    if speculation.step_times_path is None:
        return None
    table = read_table(Path(speculation.step_times_path))
    require_own(table, table_key(resolved), f"speculation.step_times_path {speculation.step_times_path}")
    live = speculation.live_shares
    return PlannerOptions(table=table, live=resolved.device == "cpu" if live is None else live)
