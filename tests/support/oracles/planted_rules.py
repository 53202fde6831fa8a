"""A second SGLang plugin that plants wrong accept rules in the ranks of a deployment, chosen by the plan.

The cap of a tier that no request has is the rule's number, and 0 leaves the ratio rule as it is. A test must catch 1,
children that are the likeliest instead of drawn, and 2, a draft distribution other than the one sampled. Imported by
processes of an engine, so it imports no test code.
"""

from pathlib import Path
from typing import Any

LIKELIEST, OTHER_TEMPERATURE = 1, 2
PLANTING_TIER = 63


def planted_keys(rule: int) -> dict[str, int]:
    """Return the plan keys that plant `rule`."""
    return {f"sparktier_tier{PLANTING_TIER}_weight": 1, f"sparktier_tier{PLANTING_TIER}_cap": rule}


def install(folder: Path) -> Path:
    """Make `folder` something that, put on PYTHONPATH, offers this module to SGLang's plugin loader; return it."""
    info = folder / "planted_rules-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted_rules\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nplanted = planted_rules:register\n")
    (folder / "planted_rules.py").write_text(Path(__file__).read_text())
    return folder


def _flatter(probs: Any) -> Any:
    roots = probs.sqrt()
    return roots / roots.sum(dim=-1, keepdim=True)


def register() -> None:
    """Plant the rules in this process; SGLang's loader calls it."""
    from sparktier.kernels import expand
    from sparktier.serving.engine.speculation import accept_step, decode_step

    chosen = [0]
    run, draw, walk = decode_step.DecodeStep.run, expand.draw_distinct, accept_step.walk_drawn

    def running(self: Any, inputs: Any) -> Any:
        planted = inputs.plan.tiers.get(PLANTING_TIER)
        chosen[0] = 0 if planted is None else planted.cap_tokens
        return run(self, inputs)

    def children(**arguments: Any) -> Any:
        if chosen[0] == LIKELIEST:
            return arguments["weights"].topk(arguments["count"], dim=-1).indices
        return draw(**arguments)

    def walking(**arguments: Any) -> Any:
        if chosen[0] == OTHER_TEMPERATURE:
            sampled = arguments["draft_probs"]
            arguments["draft_probs"] = lambda requests, rows: _flatter(sampled(requests, rows))
        return walk(**arguments)

    decode_step.DecodeStep.run = running
    expand.draw_distinct = children
    accept_step.walk_drawn = walking
