"""The error tree of the whole distribution.

    SparktierError
      ConfigError            the operator's fault: a file or option breaks a rule (exit 2)
      UpstreamError          the installed SGLang is not the one our hooks were written for (exit 2)
      RequestError           the client's fault (4xx)
      ReplicaError           a node's fault: a rank died, a replica is not there (502, 503)
        ReplicaLost          its answer broke off, or never came
          ReplicaUnreachable it took no connection, so nothing was sent
      ContractError          a message between parts is of another schema, or breaks a rule of it (400)
      ArtifactError          a checkpoint, cache or calibration file is corrupt or does not fit (exit 2)

A message states the rule, the value that broke it, and the cure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
"""Exit codes of our commands, see the tree above."""

REQUEST_ENDED = "This request was ended alone: "
"""How an engine's message begins that says why one request could not go on."""


class SparktierError(Exception):
    """Base of every error that sparktier raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One broken rule of a configuration: where, what the rule is, what was found, what to do."""

    path: str
    rule: str
    value: str
    cure: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule} (found {self.value}). {self.cure}"


class ConfigError(SparktierError):
    """A configuration breaks one or more rules; `problems` has all of them at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UpstreamError(SparktierError):
    """The installed SGLang differs from the version whose internals sparktier uses."""


class RequestError(SparktierError):
    """A request that can't be served as it is written."""


class ReplicaError(SparktierError):
    """A replica, or one of its ranks, failed or can't be reached."""


class ReplicaLost(ReplicaError):
    """A replica's answer broke off, or never came: what was sent may have been done."""


class ReplicaUnreachable(ReplicaLost):
    """A replica took no connection, so nothing was sent."""


class ContractError(SparktierError):
    """A message between parts of sparktier that its receiver can't take."""


class ArtifactError(SparktierError):
    """A file that sparktier reads (checkpoint, cache, calibration) is corrupt or belongs to something else."""
