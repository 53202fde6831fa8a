"""TLS of the listeners and of the client of replicas: changed files take effect, broken ones leave the old in force."""

import asyncio
import contextlib
import json
import logging
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509

from sparktier.configs.errors import ConfigError, ReplicaLost
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients import tls_files
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.tls_files import TlsFiles, TlsNames
from sparktier.serving.gateway import listeners
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.internal import internal_app
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from sparktier.serving.gateway.tls import replica_tls
from support.gateways.certificates import Authority, Mounted, Pair
from support.gateways.fronts import ASKED, EVERYBODY, serving
from support.gateways.grpc_calls import free_port, method
from support.scripted_replica import STREAM_END, STREAM_HEAD, Script, chunk, json_answer, scripted_replica

HELLO = pb.CompleteRequest(prompts=[pb.Prompt(text="Hello")])
TOKEN = chunk(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')
DONE = chunk(b"data: [DONE]\n\n")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files often; tests wait for what follows, not for a time."""
    monkeypatch.setattr(tls_files, "POLL_INTERVAL_S", 0.02)


@pytest.fixture
def ca() -> Authority:
    return Authority()


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "tls")


def put(mounted: Mounted, pair: Pair, ca: Authority | None = None) -> Pair:
    mounted.write(cert=pair.cert, key=pair.key, **({} if ca is None else {"ca": ca.pem}))
    return pair


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(json_answer(b'{"id":"x"}'))


class Served:
    """A gateway with TLS on both listeners."""

    def __init__(self, server: ServerSettings, gateway: Gateway, ca: Authority) -> None:
        self.server, self.gateway, self._ca = server, gateway, ca

    def context(self, client: Pair | None, folder: Path) -> ssl.SSLContext:
        """What a client trusts and shows."""
        context = ssl.create_default_context(cadata=self._ca.pem.decode())
        if client is not None:
            (folder / "client.pem").write_bytes(client.cert + client.key)
            context.load_cert_chain(folder / "client.pem")
        return context

    async def serials(self) -> tuple[int, int]:
        """The serial numbers of the certificates that new connections to HTTP and gRPC are shown."""
        return await shown(self.server.port, self._ca), await shown(self.server.grpc, self._ca, alpn="h2")

    async def until(self, serial: int) -> None:
        """Return once both listeners show the certificate `serial`."""
        async with asyncio.timeout(60):
            while await self.serials() != (serial, serial):
                await asyncio.sleep(0.02)

    async def over_http(self, client: Pair | None, folder: Path) -> int:
        """Ask over HTTP and return the status, 0 without a connection."""
        async with httpx.AsyncClient(verify=self.context(client, folder), timeout=30) as http:
            try:
                url = f"https://localhost:{self.server.port}/v1/completions"
                return (await http.post(url, json=ASKED)).status_code
            except httpx.TransportError:
                return 0

    async def over_grpc(self, client: Pair | None) -> bool:
        """Ask over gRPC and return whether it was answered."""
        shows = {} if client is None else {"private_key": client.key, "certificate_chain": client.cert}
        credentials = grpc.ssl_channel_credentials(self._ca.pem, **shows)
        async with grpc.aio.secure_channel(f"localhost:{self.server.grpc}", credentials) as channel:
            call = method(channel, "Complete")(HELLO, timeout=30)
            found = await call.code()
            assert found in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
            return found is grpc.StatusCode.OK


async def shown(port: int, ca: Authority, alpn: str = "http/1.1") -> int:
    """Return the serial number of the certificate that a new connection is shown; a client's is not asked for yet."""
    context = ssl.create_default_context(cadata=ca.pem.decode())
    context.set_alpn_protocols([alpn])
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(found).serial_number


@contextlib.asynccontextmanager
async def served(script: Script, mounted: Mounted, ca: Authority, **extra: Any) -> AsyncIterator[Served]:
    files = {f"{kind}_{name}_file": mounted.path(name) for kind in ("tls", "grpc_tls") for name in ("cert", "key")}
    ports = {"port": free_port(), "grpc_port": free_port(), "internal_port": free_port()}
    server, stopping = ServerSettings(**ports, **files, shutdown_grace_s=0.5, **extra), asyncio.Event()
    EVERYBODY.failed_reloads.clear()
    with listeners.held(server) as sockets:
        async with scripted_replica(script) as url, AsyncReplicaClient() as client:
            gateway = Gateway(ReplicaTable((serving(0, url),)), server, client, model="tiny", access=EVERYBODY)
            internal = internal_app(gateway.table, client, GatewayMetrics(failed_reloads=gateway.failed_reloads))
            running = asyncio.create_task(listeners.serve(gateway, internal, sockets, stopping))
            try:
                await listening(server)
                yield Served(server, gateway, ca)
            finally:
                stopping.set()
                await asyncio.wait_for(running, 60)


async def listening(server: ServerSettings) -> None:
    for port in (server.port, server.grpc, server.internal):
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)


async def test_a_swapped_certificate_is_shown_and_running_streams_go_on(
    mounted: Mounted, ca: Authority, tmp_path: Path
) -> None:
    first, more = put(mounted, ca.pair()), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + TOKEN)
        await more.wait()
        writer.write(TOKEN + DONE + STREAM_END)

    async with served(script, mounted, ca) as gateway:
        trusted = grpc.ssl_channel_credentials(ca.pem)
        url = f"https://localhost:{gateway.server.port}/v1/completions"
        async with (
            httpx.AsyncClient(verify=gateway.context(None, tmp_path), timeout=60) as http,
            grpc.aio.secure_channel(f"localhost:{gateway.server.grpc}", trusted) as channel,
            http.stream("POST", url, json=ASKED | {"stream": True}) as stream,
        ):
            lines = stream.aiter_lines()
            assert "text" in await anext(lines)
            call = method(channel, "StreamComplete")(HELLO, timeout=120)
            assert (await call.read()).deltas[0].text == "a"
            assert await gateway.serials() == (first.serial, first.serial)
            second = put(mounted, ca.pair())
            await gateway.until(second.serial)
            more.set()
            rest = [line async for line in lines if line]
            assert [json.loads(line[6:])["choices"][0]["text"] for line in rest[:-1]] == ["a"]
            assert rest[-1] == "data: [DONE]"
            assert (await call.read()).deltas[0].text == "a"
            assert await call.read() is grpc.aio.EOF
        assert not gateway.gateway.failed_reloads


async def test_a_broken_certificate_leaves_the_old_in_force(
    mounted: Mounted, ca: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = put(mounted, ca.pair())
    broken: dict[str, Callable[[Pair], dict[str, bytes]]] = {
        "no PEM": lambda new: {"cert": b"hello", "key": new.key},
        "of another key": lambda new: {"cert": new.cert, "key": ca.pair().key},
        "empty": lambda new: {"cert": b"", "key": new.key},
        "torn": lambda new: {"cert": new.cert[:200], "key": new.key},
    }
    async with served(answers, mounted, ca) as gateway:
        for count, make in enumerate(broken.values(), 1):
            new = ca.pair()
            mounted.write(**make(new))
            async with asyncio.timeout(60):
                # Both listeners read them.
                while gateway.gateway.failed_reloads["tls"] < 2 * count:
                    await asyncio.sleep(0.02)
            assert await gateway.serials() == (old.serial, old.serial)
            assert await gateway.over_http(None, tmp_path) == 200
            assert await gateway.over_grpc(None)
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert sum("the certificates from before stay in force" in text for text in warned) == 2 * len(broken)
        assert not any("PRIVATE" in text for text in warned)
        good = put(mounted, ca.pair())
        await gateway.until(good.serial)


async def test_only_clients_with_a_certificate_of_the_authority_are_served(
    mounted: Mounted, ca: Authority, tmp_path: Path
) -> None:
    put(mounted, ca.pair(), ca)
    stranger = Authority().pair("client")
    client = ca.pair("client")
    async with served(answers, mounted, ca, tls_client_ca_file=mounted.path("ca")) as gateway:
        for shows, good in ((client, True), (None, False), (stranger, False)):
            assert (await gateway.over_http(shows, tmp_path) == 200) is good
            assert await gateway.over_grpc(shows) is good


async def test_an_authority_that_is_replaced_is_no_longer_trusted(
    mounted: Mounted, ca: Authority, tmp_path: Path
) -> None:
    old, new = Authority("old"), Authority("new")
    before, after = old.pair("client"), new.pair("client")
    put(mounted, ca.pair(), old)
    async with served(answers, mounted, ca, tls_client_ca_file=mounted.path("ca")) as gateway:
        assert await gateway.over_http(before, tmp_path) == 200
        assert await gateway.over_http(after, tmp_path) == 0
        second = put(mounted, ca.pair(), new)
        await gateway.until(second.serial)
        assert (await gateway.over_http(before, tmp_path), await gateway.over_grpc(before)) == (0, False)
        assert (await gateway.over_http(after, tmp_path), await gateway.over_grpc(after)) == (200, True)


async def test_the_client_of_replicas_shows_its_certificate_and_takes_a_new_one(
    mounted: Mounted, ca: Authority, tmp_path: Path
) -> None:
    seen: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        seen.append(x509.load_der_x509_certificate(der).serial_number)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(json_answer(b"{}"))
        writer.close()

    (tmp_path / "replica.pem").write_bytes((own := ca.pair()).cert + own.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=ca.pem.decode())
    context.load_cert_chain(tmp_path / "replica.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    first = put(mounted, ca.pair("gateway"), ca)
    names = {f"replica_{name}_file": mounted.path(name) for name in ("cert", "key", "ca")}
    tls = replica_tls(ServerSettings(**names), Counter())
    assert tls is not None
    replica = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{replica.sockets[0].getsockname()[1]}"
    async with replica, AsyncReplicaClient(tls=tls) as client, AsyncReplicaClient() as stranger:
        assert (await client.ask("GET", url, timeout_s=30)).status == 200
        second = put(mounted, ca.pair("gateway"), ca)
        tls.poll()
        opened = await client.open(url, b"{}")
        opened.close()
        assert seen == [first.serial, second.serial]
        with pytest.raises(ReplicaLost):
            await stranger.ask("GET", url, timeout_s=30)
        put(mounted, ca.pair("gateway"), Authority())
        tls.poll()
        with pytest.raises(ReplicaLost):
            await client.ask("GET", url, timeout_s=30)


def test_a_change_that_is_seen_half_done_is_no_failure(mounted: Mounted, ca: Authority) -> None:
    failed: Counter[str] = Counter()
    put(mounted, ca.pair())
    names = TlsNames("cert", mounted.path("cert"), "key", mounted.path("key"), "ca", None)
    files = TlsFiles(names, server=True, failed=failed)
    pair = ca.pair()
    put(mounted, Pair(pair.cert, ca.pair().key))
    read = files._read

    def while_swapping() -> tls_files.Certificates:
        found = read()
        put(mounted, pair)
        return found

    files._read = while_swapping  # type: ignore[method-assign]
    files.poll()
    assert not failed
    files._read = read  # type: ignore[method-assign]
    files.poll()
    assert files.certificates.cert == pair.cert


@pytest.mark.parametrize(
    ("server", "path"),
    [
        ({"tls_cert_file": "/c"}, "server.tls_key_file"),
        ({"replica_key_file": "/k"}, "server.replica_cert_file"),
        ({"tls_client_ca_file": "/ca"}, "server.tls_client_ca_file"),
    ],
)
def test_half_of_tls_is_refused(server: dict[str, str], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_from({"model": {"path": "some/model"}, "server": server})
    assert [problem.path for problem in caught.value.problems] == [path]


def test_the_line_ready_tells_of_tls() -> None:
    server = ServerSettings(tls_cert_file="/c", tls_key_file="/k")
    assert listeners.addresses(server).startswith("http=https://127.0.0.1:8000 grpc=")
