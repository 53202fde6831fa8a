"""Rules on the served name, on who may ask, and on the timing of supervision. Pure."""

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

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
    asks = settings.gateway.keys_file is not None or settings.tokens.issuer is not None
    if not asks and not _of_this_machine(host):
        yield Problem(
            "server.host",
            "must be an address of this machine alone where no keys are asked for",
            host,
            "Set gateway.keys_file or tokens.issuer, or listen on 127.0.0.1.",
        )


def _of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_has_both_files(settings: Settings) -> Iterator[Problem]:
    for kind in ("tls", "grpc_tls", "replica"):
        keys = [f"{kind}_cert_file", f"{kind}_key_file"]
        missing = [key for key in keys if getattr(settings.server, key) is None]
        if len(missing) == 1:
            rule = "must be set where the other file of TLS is"
            yield Problem(f"server.{missing[0]}", rule, "null", "Name it, or leave out both.")


def _clients_need_tls(settings: Settings) -> Iterator[Problem]:
    server = settings.server
    if server.tls_client_ca_file is not None and server.tls_cert_file is None and server.grpc_tls_cert_file is None:
        rule = "can't be set where no listener has TLS"
        yield Problem("server.tls_client_ca_file", rule, server.tls_client_ca_file, "Set server.tls_cert_file too.")


def _service_tiers_are_tiers(settings: Settings) -> Iterator[Problem]:
    names = sorted(tier.name for tier in settings.tiers.values())
    for key in ("priority_tier", "flex_tier"):
        name = getattr(settings.gateway, key)
        if name is not None and name not in names:
            yield Problem(f"gateway.{key}", "must be the name of a tier", name, f"Name one of {names}.")


def _tokens_are_whole(settings: Settings) -> Iterator[Problem]:
    tokens = settings.tokens
    if tokens.issuer is None:
        return
    for key in ("audience", "keys_url"):
        if getattr(tokens, key) is None:
            yield Problem(f"tokens.{key}", "must be set with tokens.issuer", "null", "Set it, or take no tokens.")
    if not tokens.tiers:
        cure = "Name the tier of each word, such as {gold: interactive}."
        yield Problem("tokens.tiers", "must give at least one tier with tokens.issuer", "{}", cure)
    if tokens.keys_url is not None and not _private(tokens.keys_url):
        rule = "must be an https address, or one of this machine: who can change the keys can be anyone"
        yield Problem("tokens.keys_url", rule, tokens.keys_url, "Name the https address of the issuer's keys.")


def _private(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and _of_this_machine(host)))


def _token_tiers_are_tiers(settings: Settings) -> Iterator[Problem]:
    names = sorted(tier.name for tier in settings.tiers.values())
    for word, name in settings.tokens.tiers.items():
        if name not in names:
            yield Problem(f"tokens.tiers.{word}", "must be the name of a tier", name, f"Name one of {names}.")


_TLS_FILES = tuple(f"server.{kind}_{file}_file" for kind in ("tls", "grpc_tls", "replica") for file in ("cert", "key"))
RULES = (
    Rule(("model.path", "model.served_name"), _name_has_no_colon),
    Rule(
        (
            "supervision.restart_backoff_first_s",
            "supervision.restart_backoff_max_s",
        ),
        _backoff_grows,
    ),
    Rule(("tokens",), _tokens_are_whole),
    Rule(("tiers", "tokens.tiers"), _token_tiers_are_tiers),
    Rule(("server.host", "gateway.keys_file", "tokens.issuer"), _without_keys_this_machine_alone),
    Rule(_TLS_FILES, _tls_has_both_files),
    Rule(("server.tls_client_ca_file", "server.tls_cert_file", "server.grpc_tls_cert_file"), _clients_need_tls),
    Rule(("tiers", "gateway.priority_tier", "gateway.flex_tier"), _service_tiers_are_tiers),
)
