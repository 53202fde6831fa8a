"""Which signals are believed: fresh ones, that move on, are not dated ahead, and keep to their own contract. Pure."""

from pydantic import ValidationError

from sparktier.cluster.policy.policy_types import PolicyConfig, ReplicaInputs
from sparktier.configs.contracts.signals import Signals


def doubt(given: ReplicaInputs, config: PolicyConfig) -> str | None:
    """Return why the signals of a replica are not believed, or None if they are."""
    received, memory = given.received, given.memory
    signals = received.signals
    if signals is None:
        return "none came"
    if received.age_ms > config.stale_ms:
        return f"they are {received.age_ms} ms old, more than {config.stale_ms}"
    if reason := _broken(signals):
        return reason
    if signals.at_ms > given.at_ms + config.skew_ms:
        return f"they are dated {signals.at_ms - given.at_ms} ms ahead"
    if memory is not None and signals.seq == memory.seq and given.now_ms - memory.seq_ms > config.stale_ms:
        return f"reading {signals.seq} has come for {given.now_ms - memory.seq_ms} ms"
    return None


def _broken(signals: Signals) -> str | None:
    """Why the message could not have been read from JSON, as one that was made without its checks."""
    try:
        Signals.model_validate(signals.model_dump(warnings=False))
    except (ValidationError, ValueError, TypeError) as error:
        where = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
        return f"they break their contract at {'.'.join(map(str, where)) or 'the whole'}"
    return None
