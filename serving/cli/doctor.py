"""`sparktier doctor`: runs the checks or makes the plan, shows it, and returns the exit code."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from sparktier.configs.errors import EXIT_FAILED
from sparktier.configs.report import report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.plan import plan_deployment
from sparktier.serving.doctor import checks as doctor
from sparktier.serving.doctor.tables import show_findings, show_plan


def examine(settings: Settings, *, report: Path | None) -> int:
    """Check this machine for `settings`; 1 if something fails. Raises ArtifactError when `report` can't be written."""
    meta = report_meta("doctor", seed=None)
    findings = doctor.examine(settings)
    show_findings(findings, Console())
    if report:
        write_report(report, meta, [asdict(finding) for finding in findings])
    return EXIT_FAILED if any(finding.fails for finding in findings) else 0


def plan(settings: Settings, *, model_config: Path | None, draft_config: Path | None, report: Path | None) -> int:
    """Show what `settings` would do; 1 if it is refused.

    Raises:
        ArtifactError: the config of a model is not at hand, or `report` can't be written.
        ConfigError: the settings can't run on their device.
    """
    meta = report_meta("doctor --plan", seed=None)
    made = plan_deployment(settings, model_config=model_config, draft_config=draft_config)
    show_plan(made, Console())
    if report:
        write_report(report, meta, [asdict(line) for line in (*made.lines, *made.refusals)])
    return EXIT_FAILED if made.refusals else 0
