"""The tenants of one reading of the keys file, and which of them a key belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.settings.tenants import TenantLimits, TenantSettings, TenantsFile
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tenants.keys import KeyRing, bearer_key, keyed_hash
from sparktier.serving.gateway.tier_resolution import Entitlement, TierTable

_CURE = "Send Authorization: Bearer KEY with a key of this server."


@dataclass(frozen=True)
class Tenant:
    """Who asks. `name` is "" where no keys are configured."""

    name: str
    entitled: Entitlement
    limits: TenantLimits = field(default_factory=TenantLimits)
    # None: its cached prefixes are shared.
    prefix_secret: bytes | None = field(default=None, repr=False)

    def prefix_key(self, own: str | None) -> str | None:
        """Return the key that its prefixes are cached under, where a request has its `own` key or none."""
        return own if self.prefix_secret is None else keyed_hash(self.prefix_secret, own or "", purpose="prefix")


class Directory:
    """Tenants by their keys."""

    def __init__(self, file: TenantsFile, tiers: TierTable, pepper: bytes) -> None:
        """Raises ConfigError for a tier that is not there, or a key of two tenants."""
        if problems := list(_problems(file, tiers)):
            raise ConfigError(problems)
        self._tenants = {name: _tenant(name, settings, tiers, pepper) for name, settings in file.tenants.items()}
        self._ring = KeyRing(pepper, ((key, name) for name, tenant in file.tenants.items() for key in tenant.keys))

    @property
    def names(self) -> frozenset[str]:
        """The names of all tenants."""
        return frozenset(self._tenants)

    def tenant(self, name: str) -> Tenant | None:
        """Return the tenant `name`, if there is one."""
        return self._tenants.get(name)

    def has(self, key: str) -> bool:
        """Return whether `key` is one of a tenant's."""
        return self._ring.tenant_of(key) is not None

    def authenticate(self, authorization: str | None) -> Tenant:
        """Return the tenant whose key is in the header `Authorization`. Raises Refused (401) without one."""
        key = bearer_key(authorization)
        if key is None:
            raise Refused(f"This server asks for a key. {_CURE}", status=401, code="missing_api_key")
        name = self._ring.tenant_of(key)
        if name is None:
            raise Refused(f"The key is not one of this server's. {_CURE}", status=401, code="invalid_api_key")
        return self._tenants[name]


def prefix_secret(pepper: bytes, name: str) -> bytes:
    """Return what keeps the cached prefixes of the tenant `name` apart from those of others."""
    return bytes.fromhex(keyed_hash(pepper, name, purpose="tenant"))


def _tenant(name: str, settings: TenantSettings, tiers: TierTable, pepper: bytes) -> Tenant:
    secret = None if settings.share_prefixes else prefix_secret(pepper, name)
    default = tiers.default if settings.default_tier is None else tiers.ids[settings.default_tier]
    entitled = Entitlement(frozenset(tiers.ids[tier] for tier in settings.tiers), default)
    return Tenant(name, entitled, settings.limits, secret)


def _problems(file: TenantsFile, tiers: TierTable) -> Iterator[Problem]:
    holders: dict[str, str] = {}
    for name, tenant in file.tenants.items():
        yield from _tier_problems(name, tenant, tiers)
        for number, key in enumerate(tenant.keys):
            holder = holders.setdefault(key, name)
            if holder != name:
                rule, cure = "must be a key of one tenant alone", "Remove it from one of them."
                yield Problem(f"tenants.{name}.keys.{number}", rule, f"the same of {holder}", cure)


def _tier_problems(name: str, tenant: TenantSettings, tiers: TierTable) -> Iterator[Problem]:
    for number, tier in enumerate(tenant.tiers):
        if tier not in tiers.ids:
            cure = f"Name one of {', '.join(sorted(tiers.ids))}."
            yield Problem(f"tenants.{name}.tiers.{number}", "must be the name of a tier", tier, cure)
    default = tenant.default_tier or tiers.names[tiers.default]
    if default not in tenant.tiers:
        rule = "must be one of the tenant's tiers"
        yield Problem(f"tenants.{name}.default_tier", rule, default, f"Name one of {', '.join(tenant.tiers)}.")
