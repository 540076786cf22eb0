"""A link over TLS: the carrier's certificate is checked, or the link stays down."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from caplai.smpp.pdu import Status
from tests.channels.carrier import Carrier
from tests.channels.test_esme import TEXT, engine


@pytest.fixture
def certificate(tmp_path):
    """A carrier's self-signed certificate for 127.0.0.1: (its file, the server's context)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "smsc.example.vn")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "carrier.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = tmp_path / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, private)
    return pem, context


def test_a_known_certificate_is_trusted(conn, lan, certificate):
    pem, context = certificate

    async def play():
        async with Carrier(tls=context) as carrier, engine(carrier, tls={"ca_file": pem}):
            await carrier.bound()
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await carrier.replies(1)

    asyncio.run(play())


def test_verifying_can_be_turned_off(conn, lan, certificate):
    async def play():
        async with Carrier(tls=certificate[1]) as carrier, engine(carrier, tls={"verify": False}):
            await carrier.bound()

    asyncio.run(play())


@pytest.mark.parametrize("plain", [False, True], ids=["unknown certificate", "no TLS at all"])
def test_anything_else_stays_down(conn, lan, certificate, caplog, plain):
    async def play():
        async with (
            Carrier(tls=None if plain else certificate[1]) as carrier,
            engine(carrier, tls=True) as running,
        ):
            async with asyncio.timeout(10):
                while "cannot connect" not in running.esmes[0].state:
                    await asyncio.sleep(0.05)
            assert carrier.binds == []

    asyncio.run(play())
    assert "secret" not in caplog.text
