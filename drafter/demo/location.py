"""The folder of the demo model's drafter in the installed package."""

from importlib import resources
from pathlib import Path


def demo_draft() -> Path:
    """Return the folder of the demo model's drafter: checkpoint, calibrations and model card."""
    return Path(str(resources.files("sparktier.drafter.demo").joinpath("draft")))
