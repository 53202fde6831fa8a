"""A lease that is an object of Kubernetes (coordination.k8s.io/v1); its count of transitions tells the epoch."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sparktier.serving.controller.file_lease import FIRST_EPOCH

logger = logging.getLogger(__name__)
# Renewed after this part of its time, so that two renewals may fail.
_RENEW_FRAC = 0.33
_NOT_FOUND, _CONFLICT = 404, 409


class KubernetesLease:
    """The lease `name` in `namespace`, held as `identity` for `seconds` after each renewal.

    `api` is a `CoordinationV1Api`. Whether another's time is over is measured by `clock` (monotonic seconds) from when
    its last renewal was first seen: clocks of nodes may differ.
    """

    def __init__(
        self, api: Any, *, namespace: str, name: str, identity: str, seconds: int, clock: Callable[[], float]
    ) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._identity, self._seconds, self._clock = identity, seconds, clock
        self._epoch: int | None = None
        self._renewed_s = 0.0
        self._seen: tuple[Any, ...] | None = None
        self._seen_s = 0.0

    async def hold(self, *, above: int) -> int | None:
        """Take or renew the lease; return its epoch, or None while another has it or it can't be reached."""
        now_s = self._clock()
        if self._epoch is not None and now_s - self._renewed_s < _RENEW_FRAC * self._seconds:
            return self._epoch
        try:
            async with asyncio.timeout(_RENEW_FRAC * self._seconds):
                self._epoch = await self._held(above)
        except Exception as error:
            if getattr(error, "status", None) == _CONFLICT:
                self._epoch = None
                return None
            logger.warning("the lease %s/%s can't be renewed: %s", self._namespace, self._name, error)
            if self._epoch is not None and now_s - self._renewed_s >= self._seconds:
                self._epoch = None
        return self._epoch

    async def give_up(self) -> None:
        """Let another have it at once, where it can be reached."""
        held, self._epoch = self._epoch is not None, None
        if not held:
            return
        try:
            lease = await self._api.read_namespaced_lease(self._name, self._namespace)
            if lease.spec.holder_identity == self._identity:
                lease.spec.holder_identity = ""
                await self._api.replace_namespaced_lease(self._name, self._namespace, lease)
        except Exception as error:
            logger.warning("the lease %s/%s ends by itself: %s", self._namespace, self._name, error)

    async def _held(self, above: int) -> int | None:
        lease = await self._found(above)
        if lease is None:
            return self._own(max(0, above + 1 - FIRST_EPOCH))
        spec = lease.spec
        if spec.holder_identity != self._identity and not self._is_over(spec):
            return None
        if spec.holder_identity != self._identity or self._epoch is None:
            # Each new holder has a higher epoch, and so has one that begins anew under its old name.
            spec.lease_transitions = max((spec.lease_transitions or 0) + 1, above + 1 - FIRST_EPOCH)
            spec.acquire_time = _micro_time()
        spec.holder_identity, spec.lease_duration_seconds = self._identity, self._seconds
        spec.renew_time = _micro_time()
        # The object's version goes along, so that of two takers one gets a conflict.
        await self._api.replace_namespaced_lease(self._name, self._namespace, lease)
        return self._own(spec.lease_transitions or 0)

    async def _found(self, above: int) -> Any:
        """The lease; None once it was made here because there was none."""
        from kubernetes_asyncio.client import V1Lease, V1LeaseSpec, V1ObjectMeta

        try:
            return await self._api.read_namespaced_lease(self._name, self._namespace)
        except Exception as error:
            if getattr(error, "status", None) != _NOT_FOUND:
                raise
        spec = V1LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=self._seconds,
            lease_transitions=max(0, above + 1 - FIRST_EPOCH),
            acquire_time=_micro_time(),
            renew_time=_micro_time(),
        )
        await self._api.create_namespaced_lease(
            self._namespace, V1Lease(metadata=V1ObjectMeta(name=self._name), spec=spec)
        )
        return None

    def _own(self, transitions: int) -> int:
        self._renewed_s = self._clock()
        return FIRST_EPOCH + transitions

    def _is_over(self, spec: Any) -> bool:
        """Whether its holder has given it up, or has not renewed it for its whole time while we looked."""
        if not spec.holder_identity:
            return True
        seen = (spec.holder_identity, spec.renew_time, spec.lease_transitions)
        if seen != self._seen:
            self._seen, self._seen_s = seen, self._clock()
            return False
        return self._clock() - self._seen_s > (spec.lease_duration_seconds or self._seconds)


def _micro_time() -> datetime:
    """Now. The server wants a fraction of a second, which Python leaves out where it is zero."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond or 1)
