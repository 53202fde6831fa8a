"""Reads a controller's log of decisions over its routes."""

import json
from typing import Any

from sparktier.configs.errors import ReplicaError
from sparktier.serving.clients.replica import OK, ReplicaClient
from sparktier.serving.clients.replica_keys import bearer

_TIMEOUT_S = 10.0


class ControllerClient:
    """Asks the controller at `url` with the admin key."""

    def __init__(self, url: str, *, key: str) -> None:
        self._client = ReplicaClient(url, bearer(key), timeout_s=_TIMEOUT_S)

    def decisions(self, *, after: int) -> list[dict[str, Any]]:
        """Return the log's lines after number `after`. Raises ReplicaError when it doesn't tell them."""
        answer = self._client.ask("GET", f"/sparktier/decisions?after={after}")
        if answer.status != OK:
            raise ReplicaError(f"The controller must tell its decisions (found {answer.status}: {answer.text:.300}).")
        return [json.loads(line) for line in answer.text.splitlines()]
