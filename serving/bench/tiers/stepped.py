"""A deployment's settings to one of its ranks, stepped in this process."""

from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.engine_args import engine_kwargs
from sparktier.serving.deployment.resolved import resolve
from sparktier.serving.engine.stepping import Place, SteppedEngine
from sparktier.serving.supervision.replica_process import rank_env


def started(settings: Settings, place: Place) -> SteppedEngine:
    """Return a rank of `settings`, which are for a CPU; builds the demo model where it is asked for.

    Raises:
        ConfigError, ArtifactError: the settings can't run here, or a checkpoint is missing or unusable.
    """
    resolved = resolve(settings)
    return SteppedEngine(engine_kwargs(resolved, replica=0), rank_env(resolved), place)
