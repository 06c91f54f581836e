"""A certificate of an authority of its own, as a hospital has one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """PEM files: the certificate, its key, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


def issue(folder: Path, name: str) -> Certificate:
    """Make a certificate of that host name, and the authority behind it."""
    files = Certificate(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
    keys = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("authority", name)]
    for at, file in ((0, files.authority), (1, files.certificate)):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[at])
            .issuer_name(names[0])
            .public_key(keys[at].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=at == 0, path_length=None), critical=True)
        )
        if at:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        file.write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM))
    files.key.write_bytes(keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
