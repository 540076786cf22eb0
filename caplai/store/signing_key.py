"""RSA keys that sign (RS256), as the keyring keeps them: PKCS #8 in DER.

Whoever only looks at a keyring (an engine, the command line) needs no cryptography for it, so that is imported where a
key is made.
"""

_BITS = 2048
_RSA = bytes.fromhex("06092a864886f70d010101")
"""The object identifier rsaEncryption (RFC 8017, appendix A.1), which PKCS #8 begins with."""


def new() -> bytes:
    """A new private key; takes a tenth of a second, more or less."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=_BITS).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def looks_right(key: bytes) -> bool:
    """Whether it is PKCS #8 in DER, of an RSA key of 2048 bits or more, as far as its frame tells."""
    return (
        len(key) > _BITS // 2  # a private key stores nine numbers: 4.6 times the bits of its modulus
        and key[:2] == b"\x30\x82"
        and len(key) == 4 + int.from_bytes(key[2:4])
        and _RSA in key[4:32]
    )
