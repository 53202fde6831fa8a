"""Signals, plans and latches of replicas, over their own ports."""

from sparktier.configs.contracts.latch import LatchOrder
from sparktier.configs.contracts.message import Message, read_message
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.errors import ReplicaError
from sparktier.serving.clients.replica import OK, AsyncReplicaClient

# More than a replica waits for a rank that is late, so its reason arrives.
_TIMEOUT_S = 10.0
_REFUSED = (400, 409)


class ReplicaAdmin:
    """Asks replicas by address; `client` shows the admin key."""

    def __init__(self, client: AsyncReplicaClient) -> None:
        self._client = client

    async def signals(self, url: str) -> Signals:
        """Return the signals of the replica at `url`.

        Raises:
            ReplicaError: it doesn't answer, or its ranks don't agree.
            ContractError: its answer is no message of this schema.
        """
        answer = await self._client.ask("GET", f"{url}/sparktier/signals", timeout_s=_TIMEOUT_S)
        if answer.status != OK:
            raise ReplicaError(f"A replica must tell its signals (found {answer.status}: {answer.text:.300}).")
        return read_message(Signals, answer.content)

    async def send(self, url: str, plan: Plan) -> str | None:
        """Send `plan` to the replica at `url`; return why it refused it, or None.

        Raises:
            ReplicaError: it doesn't answer, or a rank is late.
        """
        return await self._post(f"{url}/sparktier/plan", plan, "a plan")

    async def latch(self, url: str, order: LatchOrder) -> str | None:
        """Have the replica at `url` take `order`; return why it refused it, or None.

        Raises:
            ReplicaError: it doesn't answer, or a rank is late.
        """
        return await self._post(f"{url}/sparktier/latch", order, "an order")

    async def _post(self, url: str, message: Message, what: str) -> str | None:
        answer = await self._client.ask("POST", url, timeout_s=_TIMEOUT_S, json=message.model_dump(mode="json"))
        if answer.status == OK:
            return None
        if answer.status in _REFUSED:
            return f"{answer.text:.500}"
        raise ReplicaError(f"A replica must take or refuse {what} (found {answer.status}: {answer.text:.300}).")
