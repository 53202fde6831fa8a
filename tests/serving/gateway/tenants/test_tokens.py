"""Tokens of an issuer: what is taken, what is refused and why, over both transports; keys that rotate or don't come."""

import asyncio
import base64
import contextlib
import hmac
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from joserfc import jwk

from sparktier.configs.errors import ConfigError, ReplicaError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.settings import GatewaySettings, ServerSettings
from sparktier.serving.clients.key_sets import fetch_key_set
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.access import Access, access_of
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc.server import serving as grpc_serving
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.tenants.key_set import AGAIN_S, LONGEST_S, REFRESH_S, KeySets, KeysUnavailable
from sparktier.serving.gateway.tenants.keys import PEPPER_ENV, keyed_hash
from support.gateways.fronts import answered, listening, serving
from support.gateways.grpc_calls import free_port, method, reason_of
from support.gateways.issuer import AUDIENCE, NAME, Issuer, settings_with
from support.gateways.replying_replica import replying
from support.scripted_replica import scripted_replica

ISSUER = Issuer()
STRANGER = jwk.RSAKey.generate_key(2048, {"kid": "first"})
PEPPER = "p" * 32
Asked = Callable[[str], Awaitable[tuple[int, str]]]


def unsigned(**head: Any) -> str:
    """A good token's claims under another header, without a signature."""
    claims = ISSUER.token().split(".")[1]
    text = base64.urlsafe_b64encode(json.dumps({"kid": "first", **head}).encode()).rstrip(b"=").decode()
    return f"{text}.{claims}.AAAA"


def with_public_key_as_secret() -> str:
    """HS256 under the issuer's public key, which a careless server takes for the secret."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "first"}).encode()).rstrip(b"=").decode()
    signed = f"{head}.{ISSUER.token().split('.')[1]}"
    mac = hmac.new(ISSUER.key.as_pem(private=False), signed.encode(), sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def bad_tokens() -> dict[str, tuple[str, str]]:
    """Tokens that are refused, and what of their fault is told."""
    now, good = int(time.time()), ISSUER.token()
    tampered = good.split(".")
    tampered[1] = ISSUER.token(sub="beta").split(".")[1]
    return {
        "another's signature": (ISSUER.token(key=STRANGER), "its signature must be good"),
        "tampered claims": (".".join(tampered), "its signature must be good"),
        "alg none": (unsigned(alg="none"), "must be signed by RS256, ES256"),
        "alg None": (unsigned(alg="None"), "must be signed by RS256, ES256"),
        "no alg": (unsigned(), "must be signed by RS256, ES256"),
        "HS with the public key": (with_public_key_as_secret(), "must be signed by RS256, ES256"),
        "an algorithm that isn't allowed": (ISSUER.token(head={"alg": "RS512"}), "must be signed by RS256, ES256"),
        "an algorithm of another kind of key": (unsigned(alg="ES256"), "its signature must be good"),
        "a critical header that isn't known": (unsigned(alg="RS256", crit=["x"], x=1), "its signature must be good"),
        "a kid that is no text": (unsigned(alg="RS256", kid=["first"]), "its kid must be a short text"),
        "an unknown kid": (ISSUER.token(head={"kid": "no"}), "a key that its issuer publishes"),
        "another audience": (ISSUER.token(aud="other"), "its aud is not that of this server"),
        "no audience": (ISSUER.token(aud=None), "must have the claim aud"),
        "another issuer": (ISSUER.token(iss="https://evil.example"), "its iss is not that of this server"),
        "no issuer": (ISSUER.token(iss=None), "must have the claim iss"),
        "expired": (ISSUER.token(exp=now - 31), "it has expired"),
        "without an end": (ISSUER.token(exp=None), "must have the claim exp"),
        "an end that is no number": (ISSUER.token(exp="tomorrow"), "its exp is not"),
        "not yet": (ISSUER.token(nbf=now + 300), "its nbf is not that"),
        "no tenant": (ISSUER.token(sub=None), "its sub must be a tenant's name"),
        "a tenant that is no name": (ISSUER.token(sub="Acme/../x"), "its sub must be a tenant's name"),
        "a tenant with a line": (ISSUER.token(sub="acme\n"), "its sub must be a tenant's name"),
        "no tier": (ISSUER.token(scope="other"), "its scope must give a tier"),
        "tiers that are no words": (ISSUER.token(scope={"llm:fast": 1}), "its scope must give a tier"),
        "a header that is no JSON": ("e30x.e30.AAAA", "its header must be JSON"),
    }


@contextlib.asynccontextmanager
async def opened(issuer: Issuer, **tokens: Any) -> AsyncIterator[Access]:
    async with replying(issuer.reply) as url:
        yield access_of(settings_with(url, **tokens), {PEPPER_ENV: PEPPER})


@contextlib.asynccontextmanager
async def transports(access: Access) -> AsyncIterator[dict[str, Asked]]:
    """Yield, for HTTP and gRPC, a function from a token to the status and code of an answer."""
    async with scripted_replica(answered) as replica, AsyncReplicaClient() as client:
        table = ReplicaTable([serving(0, replica)])
        server = ServerSettings(grpc_port=free_port(), shutdown_grace_s=0.1)
        gateway = Gateway(table, server, client, model="tiny", access=access)
        async with (
            listening(front(gateway)) as (url, _),
            httpx.AsyncClient(base_url=url, timeout=30) as http,
            grpc_serving(gateway) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):

            async def over_http(token: str) -> tuple[int, str]:
                head = {"authorization": f"Bearer {token}"}
                found = await http.post("/v1/completions", json={"prompt": "Hello"}, headers=head)
                error = found.json().get("error", {})
                return found.status_code, f"{error.get('code', '')} {error.get('message', '')}"

            async def over_grpc(token: str) -> tuple[int, str]:
                asked = pb.CompleteRequest(prompts=[pb.Prompt(text="Hello")])
                try:
                    await method(channel, "Complete")(asked, metadata=(("authorization", f"Bearer {token}"),))
                except grpc.aio.AioRpcError as error:
                    codes = {grpc.StatusCode.UNAUTHENTICATED: 401, grpc.StatusCode.UNAVAILABLE: 503}
                    return codes.get(error.code(), 0), f"{reason_of(error)} {error.details()}"
                return 200, " "

            yield {"http": over_http, "grpc": over_grpc}


async def test_bad_tokens_are_refused_over_both_transports() -> None:
    bad = bad_tokens()
    async with opened(ISSUER) as access, transports(access) as asked:
        for ask in asked.values():
            assert (await ask(ISSUER.token()))[0] == 200
            for name, (token, said) in bad.items():
                status, text = await ask(token)
                assert (status, said in text, text.startswith("invalid_token ")) == (401, True, True), (name, text)
                assert token not in text
            assert (await ask("sk-some-key"))[0] == 401


async def test_tenant_and_tiers_follow_from_the_claims() -> None:
    async with opened(ISSUER, users_at_once=3) as access:
        acme = await access.identify(f"Bearer {ISSUER.token()}")
        assert (acme.name, acme.entitled.tiers, acme.entitled.default) == ("acme", {1}, 1)
        assert acme.limits.users_at_once == 3
        beta = await access.identify(f"bearer {ISSUER.token(sub='beta', scope=['llm:all', 'llm:fast'])}")
        assert (beta.name, beta.entitled.tiers, beta.entitled.default) == ("beta", {0, 1}, 0)
        assert acme.prefix_secret != beta.prefix_secret
        several = await access.identify(f"Bearer {ISSUER.token(aud=['other', AUDIENCE], nbf=int(time.time()) + 20)}")
        assert several.name == "acme"


async def test_keys_and_tokens_live_beside_each_other(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    hashed = keyed_hash(PEPPER.encode(), "sk-a")
    limits = {"users_at_once": 7}
    keys.write_text(yaml.safe_dump({"tenants": {"acme": {"keys": [hashed], "tiers": ["standard"], "limits": limits}}}))
    async with replying(ISSUER.reply) as url:
        settings = settings_with(url)
        settings = settings.model_copy(update={"gateway": GatewaySettings(keys_file=str(keys))})
        access = access_of(settings, {PEPPER_ENV: PEPPER})
        by_key, by_token = [await access.identify(f"Bearer {each}") for each in ("sk-a", ISSUER.token())]
        assert (by_key.name, by_key.entitled.tiers) == ("acme", {0})
        assert (by_token.name, by_token.entitled.tiers, by_token.limits.users_at_once) == ("acme", {1}, 7)
        assert by_token.prefix_secret == by_key.prefix_secret
        with pytest.raises(Refused, match="not one of this server's"):
            await access.identify("Bearer sk-b")


async def test_a_rotated_key_is_found_and_the_old_one_no_longer_taken() -> None:
    issuer, now = Issuer(), [0.0]
    keys = KeySets(fetched(issuer), now_s=lambda: now[0])
    assert await keys.key("first") is not None
    issuer.rotate()
    now[0] += AGAIN_S
    assert await keys.key("second") is not None
    assert await keys.key("first") is None
    assert issuer.fetched == 2


async def test_a_flood_of_unknown_keys_makes_one_fetch_in_a_while() -> None:
    issuer, now = Issuer(), [0.0]
    keys = KeySets(fetched(issuer), now_s=lambda: now[0])
    found = await asyncio.gather(*(keys.key(f"kid-{number}") for number in range(200)))
    assert found == [None] * 200
    assert issuer.fetched == 1
    for second in range(100):
        now[0] = float(second)
        assert await keys.key("first") is not None
        assert [await keys.key(f"more-{second}-{number}") for number in range(20)] == [None] * 20
    assert issuer.fetched == 100 / AGAIN_S


async def test_a_request_that_is_cancelled_leaves_the_fetch_to_the_others() -> None:
    issuer, may = Issuer(), asyncio.Event()

    async def slow() -> bytes:
        await may.wait()
        return await fetched(issuer)()

    keys = KeySets(slow, now_s=lambda: 0.0)
    first, second = asyncio.create_task(keys.key("first")), asyncio.create_task(keys.key("first"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    may.set()
    assert await second is not None


async def test_keys_outlive_an_issuer_that_is_down_for_a_while() -> None:
    issuer, now = Issuer(), [0.0]
    failed: Counter[str] = Counter()
    keys = KeySets(fetched(issuer), now_s=lambda: now[0], failed=failed)
    assert await keys.key("first") is not None
    issuer.down = True
    for now[0] in (REFRESH_S + 1, LONGEST_S - 1):
        assert await keys.key("first") is not None
        assert await keys.key("unknown") is None
    now[0] = LONGEST_S + 1
    with pytest.raises(KeysUnavailable):
        await keys.key("first")
    issuer.down = False
    now[0] += AGAIN_S
    assert await keys.key("first") is not None
    assert failed["issuer_keys"] >= 2


async def test_without_the_issuer_s_keys_no_token_is_judged() -> None:
    issuer = Issuer()
    issuer.down = True
    async with opened(issuer) as access, transports(access) as asked:
        for ask in asked.values():
            status, text = await ask(issuer.token())
            assert (status, text.split()[0]) == (503, "keys_unavailable")
    assert issuer.fetched == 1


@pytest.mark.parametrize(
    "listed",
    [
        [jwk.OctKey.generate_key(256, {"kid": "first"}).as_dict(private=True)],
        [jwk.RSAKey.generate_key(1024, {"kid": "first"}).as_dict(private=False)],
        [ISSUER.key.as_dict(private=False) | {"use": "enc"}],
        [{"kty": "RSA", "kid": "first", "n": "!", "e": "AQAB"}, 7, {}],
        [ISSUER.key.as_dict(private=False)] * 65,
    ],
    ids=["a shared secret", "a short key", "a key for encryption", "no keys", "too many keys"],
)
async def test_keys_that_can_t_be_used_are_none(listed: list[Any]) -> None:
    issuer = Issuer()
    issuer.listed = listed
    with pytest.raises(KeysUnavailable):
        await KeySets(fetched(issuer), now_s=lambda: 0.0).key("first")


async def test_a_fetch_has_bounds() -> None:
    replies = iter([httpx.Response(200, content=b"x" * (300 << 10)), httpx.Response(302), httpx.Response(500)])
    async with replying(lambda _: next(replies)) as url:
        for said in ("less than", "found 302", "found 500"):
            with pytest.raises(ReplicaError, match=said):
                await fetch_key_set(url)
    with pytest.raises(ReplicaError, match="ClientConnectorError"):
        await fetch_key_set(url)


@pytest.mark.parametrize(
    ("tokens", "path"),
    [
        ({"audience": None}, "tokens.audience"),
        ({"keys_url": None}, "tokens.keys_url"),
        ({"keys_url": "http://issuer.example/keys"}, "tokens.keys_url"),
        ({"keys_url": "file:///etc/passwd"}, "tokens.keys_url"),
        ({"tiers": {}}, "tokens.tiers"),
        ({"tiers": {"llm": "gold"}}, "tokens.tiers.llm"),
        ({"algorithms": ["HS256"]}, "tokens.algorithms.0"),
        ({"algorithms": ["none"]}, "tokens.algorithms.0"),
    ],
)
def test_settings_that_can_t_be_meant_are_refused(tokens: dict[str, Any], path: str) -> None:
    good = {"issuer": NAME, "audience": AUDIENCE, "keys_url": "https://i.example/k", "tiers": {"llm": "standard"}}
    data = {"model": {"path": "some/model"}, "tokens": good | tokens}
    with pytest.raises(ConfigError) as caught:
        settings_from(data)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert settings_from({**data, "tokens": good, "server": {"host": "0.0.0.0"}}).tokens.issuer == NAME


def fetched(issuer: Issuer) -> Callable[[], Awaitable[bytes]]:
    async def fetch() -> bytes:
        found = issuer.reply(httpx.Request("GET", "http://issuer"))
        if found.status_code != 200:
            raise ReplicaError("down")
        return found.content

    return fetch
