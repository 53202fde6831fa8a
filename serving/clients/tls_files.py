"""Certificates in files that others renew: read again when they change, and what is broken leaves the old in force."""

import asyncio
import logging
import os
import ssl
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.files import file_mark

POLL_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)

Mark = tuple[object, ...]


@dataclass(frozen=True)
class TlsNames:
    """Paths of PEM files, and the settings that they are from: what a side shows, and who may sign the other's."""

    cert_key: str
    cert: str | None
    key_key: str
    key: str | None
    ca_key: str
    ca: str | None


@dataclass(frozen=True)
class Certificates:
    """What the files held when they were last good."""

    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    ca: bytes = b""


class TlsFiles:
    """The files of one side of TLS. `failed` counts, under `tls`, changes that could not be used."""

    def __init__(self, names: TlsNames, *, server: bool, failed: Counter[str] | None = None) -> None:
        """Raises ConfigError when a file can't be read or used."""
        self._names = names
        self._server = server
        self._failed: Counter[str] = Counter() if failed is None else failed
        self._mark = self._marks()
        self.certificates = self._read()
        self.context = self._context(self.certificates)
        self._base = self._context(self.certificates)
        if server:
            # Each handshake takes the context of its moment; verification is the same in all of them.
            self._base.sni_callback = self._take_context

    @property
    def server_context(self) -> ssl.SSLContext:
        """The context for a listener, which heeds every reload."""
        return self._base

    def poll(self) -> None:
        """Read the files if one of them is another than before; say in the log what came of it."""
        mark = self._marks()
        if mark == self._mark:
            return
        try:
            certificates = self._read()
            context = self._context(certificates)
        except ConfigError as error:
            if mark != self._marks():
                # They are being changed right now; the next look sees all of it.
                return
            self._mark = mark
            self._failed["tls"] += 1
            _log.warning("the certificates from before stay in force. %s", error.problems[0])
        else:
            self._mark = mark
            self.certificates, self.context = certificates, context
            _log.info("%s: certificates read again", self._names.cert or self._names.ca)

    async def watch(self) -> None:
        """Poll until cancelled; reading is left to a thread, as a file system may be slow."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            await asyncio.to_thread(self.poll)

    def _take_context(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self.context

    def _marks(self) -> Mark:
        paths = (self._names.cert, self._names.key, self._names.ca)
        return tuple(None if path is None else file_mark(Path(path)) for path in paths)

    def _read(self) -> Certificates:
        names = self._names
        key = _content(names.key_key, names.key)
        return Certificates(_content(names.cert_key, names.cert), key, _content(names.ca_key, names.ca))

    def _context(self, found: Certificates) -> ssl.SSLContext:
        names = self._names
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self._server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A ticket would let a client come back whose certificate is no longer taken.
        context.options |= ssl.OP_NO_TICKET
        if self._server:
            context.num_tickets = 0
            context.set_alpn_protocols(["http/1.1"])
        if found.cert:
            _load_pair(context, found, names)
        if found.ca:
            _load_ca(context, found.ca, names)
            context.verify_mode = ssl.CERT_REQUIRED
        elif not self._server:
            context.load_default_certs()
        return context


def _load_pair(context: ssl.SSLContext, found: Certificates, names: TlsNames) -> None:
    try:
        with _Memory(found.cert) as cert, _Memory(found.key) as key:
            # An empty password: without one a terminal would be asked for it.
            context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        rule = f"must be the PEM of a certificate chain with its key in {names.key_key}, without a password"
        reason = getattr(error, "reason", None) or type(error).__name__
        raise ConfigError([Problem(names.cert_key, rule, f"{names.cert}: {reason}", "Write both anew.")]) from None


def _load_ca(context: ssl.SSLContext, ca: bytes, names: TlsNames) -> None:
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        rule = "must be the PEM of the certificates that sign the other side's"
        raise ConfigError([Problem(names.ca_key, rule, f"{names.ca}: {reason}", "Write it anew.")]) from None


class _Memory:
    """Gives bytes a path without a disk: the pair that is loaded is the one that was read, and a key is not written."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __enter__(self) -> str:
        self._descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
        os.write(self._descriptor, self._content)
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _content(key: str, path: str | None) -> bytes:
    if path is None:
        return b""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        rule = f"must be a file that can be read ({error.strerror})"
        raise ConfigError([Problem(key, rule, path, "Name a PEM file.")]) from None
    if not content.strip():
        raise ConfigError([Problem(key, "must be a PEM file", f"{path}: nothing in it", "Write it anew.")])
    return content
