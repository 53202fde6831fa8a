"""Shows what the doctor found, and a plan, as tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from sparktier.serving.deployment.plan import DeploymentPlan, PlanLine
from sparktier.serving.doctor.checks import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a table with a line for each finding."""
    table = Table("check", "")
    for name in ("found", "cure"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.status]
        table.add_row(finding.check, f"[{colour}]{finding.status}[/]", _plain(finding.found), _plain(finding.cure))
    console.print(table)


def show_plan(plan: DeploymentPlan, console: Console) -> None:
    """Print a table for each section of `plan`, refusals last."""
    lines = (*plan.lines, *plan.refusals)
    for section in dict.fromkeys(line.section for line in lines):
        table = Table(title=section, title_justify="left", show_header=False)
        for line in lines:
            if line.section == section:
                table.add_row(line.name, _value(line), _plain(line.note))
        console.print(table)
    if not plan.refusals:
        console.print("Nothing is refused. Every figure here is computed, none was measured on a GPU.")


def _value(line: PlanLine) -> str:
    is_count = isinstance(line.value, int) and not isinstance(line.value, bool)
    return f"{line.value:,}" if is_count else _plain(str(line.value))


def _plain(text: str) -> str:
    """Return `text` so that the console takes none of it for markup."""
    return text.replace("[", r"\[")
