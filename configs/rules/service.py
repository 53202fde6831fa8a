"""Rules on the served name, on who may ask, and on the timing of supervision. Pure."""

import ipaddress
from collections.abc import Iterator

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings


def _backoff_grows(settings: Settings) -> Iterator[Problem]:
    first, longest = settings.supervision.restart_backoff_first_s, settings.supervision.restart_backoff_max_s
    if first > longest:
        yield Problem(
            "supervision.restart_backoff_first_s",
            f"must not exceed restart_backoff_max_s ({longest})",
            str(first),
            f"Use {longest} or less.",
        )


def _name_has_no_colon(settings: Settings) -> Iterator[Problem]:
    # SGLang splits `model:adapter` there (sglang/srt/arg_groups/validation_hook.py, 0.5.23).
    name = settings.model.public_name
    if ":" in name:
        yield Problem(
            "model.served_name",
            "must not contain a colon, which separates an adapter's name in requests",
            name,
            "Set it to a name without one.",
        )


def _without_keys_this_machine_alone(settings: Settings) -> Iterator[Problem]:
    host = settings.server.host
    if settings.gateway.keys_file is None and not _of_this_machine(host):
        yield Problem(
            "server.host",
            "must be an address of this machine alone where no keys are asked for",
            host,
            "Set gateway.keys_file, or listen on 127.0.0.1.",
        )


def _of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_has_both_files(settings: Settings) -> Iterator[Problem]:
    files = [(f"server.{name}", getattr(settings.server, name)) for name in ("grpc_tls_cert_file", "grpc_tls_key_file")]
    missing = [key for key, path in files if path is None]
    if len(missing) == 1:
        [key] = missing
        yield Problem(key, "must be set where the other file of TLS is", "null", "Name it, or leave out both.")


def _service_tiers_are_tiers(settings: Settings) -> Iterator[Problem]:
    names = sorted(tier.name for tier in settings.tiers.values())
    for key in ("priority_tier", "flex_tier"):
        name = getattr(settings.gateway, key)
        if name is not None and name not in names:
            yield Problem(f"gateway.{key}", "must be the name of a tier", name, f"Name one of {names}.")


RULES = (
    Rule(("model.path", "model.served_name"), _name_has_no_colon),
    Rule(
        (
            "supervision.restart_backoff_first_s",
            "supervision.restart_backoff_max_s",
        ),
        _backoff_grows,
    ),
    Rule(("server.host", "gateway.keys_file"), _without_keys_this_machine_alone),
    Rule(("server.grpc_tls_cert_file", "server.grpc_tls_key_file"), _tls_has_both_files),
    Rule(("tiers", "gateway.priority_tier", "gateway.flex_tier"), _service_tiers_are_tiers),
)
