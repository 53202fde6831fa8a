"""The log of decisions: a line of JSON for each, with all inputs, in files that are rotated; the last ones in memory.

A line has a number `seq`, a `kind` and what belongs to it: `start` (the operator's choices and tables of step times),
`decision`, or `state` (how a replica takes its plan, and who holds the lease).
"""

import json
import logging
from collections import deque
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from sparktier.cluster.policy.policy_types import PolicyConfig
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.contracts.decision import Decision
from sparktier.configs.contracts.plan import Plan

_KEPT_FILES = 4
_KEPT_LINES = 1000


class DecisionLog:
    """Writes to the file at `path`, and holds the last lines for those who follow."""

    def __init__(self, path: Path, *, file_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rotation is the library's; there is no logger, so no other handler gets the lines.
        self._file = RotatingFileHandler(path, maxBytes=file_bytes, backupCount=_KEPT_FILES, encoding="utf-8")
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
        self._seq = 0
        self.counts: dict[str, int] = {}

    def start(self, epoch: int, config: PolicyConfig, models: Mapping[str, StepTimeModel]) -> None:
        """Write down what all later decisions are made by."""
        tables = {name: model.table.model_dump(mode="json") for name, model in models.items()}
        # Replicas of a deployment share one table.
        same = {json.dumps(table, sort_keys=True) for table in tables.values()}
        table: Any = json.loads(same.pop()) if len(same) == 1 else tables or None
        self._write("start", {"epoch": epoch, "config": config.model_dump(mode="json"), "step_times": table})

    def decision(self, decision: Decision, plan: Plan) -> None:
        """Write down a decision, and the plan that it is part of."""
        number = {"epoch": plan.epoch, "version": plan.version}
        self._write("decision", number | {"decision": decision.model_dump(mode="json")})

    def state(self, at_ms: int, name: str, state: str, found: str) -> None:
        """Write down that the lease, or a replica, is in another state."""
        self._write("state", {"at_ms": at_ms, "name": name, "state": state, "found": found})

    def after(self, seq: int) -> list[str]:
        """Return the lines after number `seq` that are still held; all of them if this log has not come that far.

        The latter is what someone gets who followed an earlier process.
        """
        since = seq if seq <= self._seq else 0
        return [line for number, line in self._lines if number > since]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, kind: str, what: Mapping[str, Any]) -> None:
        self._seq += 1
        self.counts[kind] = self.counts.get(kind, 0) + 1
        line = json.dumps({"seq": self._seq, "kind": kind, **what})
        self._lines.append((self._seq, line))
        self._file.emit(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
