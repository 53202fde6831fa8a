"""Decides for every transport who asks, which tier serves the request, and whether the tenant's limits have room."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from sparktier.configs.plan_keys import TIER_PARAM
from sparktier.configs.settings.settings import Settings
from sparktier.serving.gateway.tenants.allowance import Allowance, Load, Permit
from sparktier.serving.gateway.tenants.directory import Directory, Tenant
from sparktier.serving.gateway.tenants.keys import read_pepper
from sparktier.serving.gateway.tenants.keys_file import Build, KeysFile, load_keys_file
from sparktier.serving.gateway.tier_resolution import TierAsk, TierTable


class Access:
    """Whom the gateway serves: everybody as `tiers` say without a keys file, else its tenants."""

    def __init__(
        self, tiers: TierTable, keys: KeysFile | None = None, directory_of: Callable[[TierTable], Build] | None = None
    ) -> None:
        self.tiers = tiers
        self.keys = keys
        self._directory_of = directory_of
        self._everybody = Tenant("", tiers.everything)
        self._allowances: dict[str, Allowance] = defaultdict(Allowance)

    def use_tiers(self, settings: Settings) -> None:
        """Resolve requests by the tiers of `settings` from now on.

        Raises:
            ConfigError: a tenant of the keys file names a tier that is gone; nothing has changed.
        """
        tiers = TierTable(settings.tiers, settings.gateway)
        if self.keys is not None and self._directory_of is not None:
            self.keys.rebuild(self._directory_of(tiers))
        self.tiers, self._everybody = tiers, Tenant("", tiers.everything)

    def authenticate(self, authorization: str | None) -> Tenant:
        """Return who asks, by the header `Authorization`. Raises Refused (401) where a key is needed and missing."""
        return self._everybody if self.keys is None else self.keys.directory.authenticate(authorization)

    def tier(self, ask: TierAsk, tenant: Tenant) -> int:
        """Return the id of the tier for a request of `tenant`. Raises Refused, see `TierTable.resolve`."""
        return self.tiers.resolve(ask, tenant.entitled)

    def admit(self, load: Load, tenant: Tenant, *, now_s: float) -> Permit:
        """Return the permit of a request of `tenant`. Raises Refused where its limits have no room."""
        return self._allowances[tenant.name].admit(load, tenant.limits, now_s=now_s)


def access_of(settings: Settings, env: MutableMapping[str, str] = os.environ) -> Access:
    """Return who may use the deployment of `settings`; the pepper is taken out of `env`.

    Raises:
        ConfigError: the keys file, or the pepper, breaks a rule.
    """
    gateway = settings.gateway
    tiers = TierTable(settings.tiers, gateway)
    if gateway.keys_file is None:
        return Access(tiers)
    pepper = read_pepper(gateway.pepper_file, env)

    def directory_of(table: TierTable) -> Build:
        return lambda file: Directory(file, table, pepper)

    return Access(tiers, load_keys_file(Path(gateway.keys_file), directory_of(tiers)), directory_of)


def engine_fields(body: Mapping[str, Any], tier: int, tenant: Tenant) -> dict[str, Any]:
    """Return what a request to an engine has from us: its tier, and the key that its prefixes are cached under."""
    prefix_key = tenant.prefix_key(body.get("extra_key"))
    return {"custom_params": {TIER_PARAM: tier}, **({} if prefix_key is None else {"extra_key": prefix_key})}
