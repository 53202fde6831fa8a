"""Certificate authorities and certificates for tests, made in memory and written where a test wants them."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    cert: bytes
    key: bytes

    @property
    def serial(self) -> int:
        """The certificate's serial number."""
        return x509.load_pem_x509_certificate(self.cert).serial_number


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "ca") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.pem = self._signed(self._name, self._key, ca=True).cert

    def pair(self, name: str = "localhost") -> Pair:
        """Return a new certificate for `name`, localhost and 127.0.0.1."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._signed(subject, ec.generate_private_key(ec.SECP256R1()), ca=False)

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> Pair:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        )
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Pair(
            made.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


class Mounted:
    """A folder of files that are swapped together by one link, as Kubernetes does with Secrets and ConfigMaps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = 0

    def write(self, **files: bytes) -> None:
        """Put `files` in place of those before; `cert` becomes `cert.pem`."""
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir(parents=True)
        for name, content in files.items():
            (version / f"{name}.pem").write_bytes(content)
        link = self._folder / "..new"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")
        for name in files:
            if not (visible := self._folder / f"{name}.pem").is_symlink():
                visible.symlink_to(f"..data/{name}.pem")

    def path(self, name: str) -> str:
        """Return where the file `name` is."""
        return str(self._folder / f"{name}.pem")
