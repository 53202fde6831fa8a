"""`sparktier doctor`: runs the checks or makes the plan, shows it, and returns the exit code. Knows no check itself."""

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from sparktier.configs.settings import Settings
from sparktier.serving import doctor
from sparktier.serving.deployment_plan import plan_deployment
from sparktier.serving.doctor_report import show_findings, show_plan, write_json

EXIT_FAILED = 1


def examine(settings: Settings, *, report: Path | None) -> int:
    """Check this machine for `settings`; 1 if something fails. Raises ConfigError when `report` can't be written."""
    started_at = datetime.now(UTC)
    findings = doctor.examine(settings)
    show_findings(findings, Console())
    if report:
        write_json(report, findings, command="doctor", started_at=started_at)
    return EXIT_FAILED if any(finding.fails for finding in findings) else 0


def plan(settings: Settings, *, model_config: Path | None, draft_config: Path | None, report: Path | None) -> int:
    """Show what `settings` would do; 1 if it is refused.

    Raises:
        ArtifactError: the config of a model is not at hand.
        ConfigError: the settings can't run on their device, or `report` can't be written.
    """
    started_at = datetime.now(UTC)
    made = plan_deployment(settings, model_config=model_config, draft_config=draft_config)
    show_plan(made, Console())
    if report:
        write_json(report, (*made.rows, *made.refusals), command="doctor --plan", started_at=started_at)
    return EXIT_FAILED if made.refusals else 0
