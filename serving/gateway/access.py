"""Decides for every transport who asks, which tier serves the request, and whether the tenant's limits have room."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from sparktier.configs.plan_keys import TIER_PARAM
from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.key_sets import fetch_key_set
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tenants.allowance import Allowance, Load, Permit
from sparktier.serving.gateway.tenants.directory import Directory, Tenant
from sparktier.serving.gateway.tenants.key_set import KeySets
from sparktier.serving.gateway.tenants.keys import bearer_key, read_pepper
from sparktier.serving.gateway.tenants.keys_file import Build, KeysFile, load_keys_file
from sparktier.serving.gateway.tenants.tokens import Tokens, looks_like_a_token
from sparktier.serving.gateway.tier_resolution import TierAsk, TierTable


class Access:
    """Whom the gateway serves: the tenants of a keys file and those of tokens, without either everybody."""

    def __init__(
        self,
        tiers: TierTable,
        keys: KeysFile | None = None,
        directory_of: Callable[[TierTable], Build] | None = None,
        tokens: Tokens | None = None,
        failed_reloads: Counter[str] | None = None,
    ) -> None:
        self.failed_reloads: Counter[str] = Counter() if failed_reloads is None else failed_reloads
        self.tiers = tiers
        self.keys = keys
        self._directory_of = directory_of
        self._tokens = tokens
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

    async def identify(self, authorization: str | None) -> Tenant:
        """Return who asks, by the header `Authorization`: a key, or a token where those are taken.

        Raises:
            Refused: 401 where one is needed and missing or not good, 503 where a token can't be judged now.
        """
        shown = bearer_key(authorization)
        if self._tokens is None or shown is None or not looks_like_a_token(shown):
            return self.authenticate(authorization)
        listed = None if self.keys is None else self.keys.directory
        if listed is not None and listed.has(shown):
            return self.authenticate(authorization)
        return await self._tokens.tenant_of(shown, self.tiers, listed)

    def authenticate(self, authorization: str | None) -> Tenant:
        """Return who asks, by a key in the header `Authorization`. Raises Refused (401) without one that is needed."""
        if self.keys is not None:
            return self.keys.directory.authenticate(authorization)
        if self._tokens is not None:
            message = "This server asks for a token. Send Authorization: Bearer TOKEN with one of its issuer."
            raise Refused(message, status=401, code="missing_api_key")
        return self._everybody

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
    if gateway.keys_file is None and settings.tokens.issuer is None:
        return Access(tiers)
    pepper = read_pepper(gateway.pepper_file, env)
    failed: Counter[str] = Counter()
    tokens = _tokens_of(settings, pepper, failed)
    if gateway.keys_file is None:
        return Access(tiers, tokens=tokens, failed_reloads=failed)

    def directory_of(table: TierTable) -> Build:
        return lambda file: Directory(file, table, pepper)

    file = load_keys_file(Path(gateway.keys_file), directory_of(tiers), failed)
    return Access(tiers, file, directory_of, tokens, failed)


def _tokens_of(settings: Settings, pepper: bytes, failed: Counter[str]) -> Tokens | None:
    url = settings.tokens.keys_url
    if settings.tokens.issuer is None or url is None:
        return None
    keys = KeySets(lambda: fetch_key_set(url), now_s=time.monotonic, failed=failed)
    return Tokens(settings.tokens, keys, pepper=pepper, now_s=time.time)


def engine_fields(body: Mapping[str, Any], tier: int, tenant: Tenant) -> dict[str, Any]:
    """Return what a request to an engine has from us: its tier, and the key that its prefixes are cached under."""
    prefix_key = tenant.prefix_key(body.get("extra_key"))
    return {"custom_params": {TIER_PARAM: tier}, **({} if prefix_key is None else {"extra_key": prefix_key})}
