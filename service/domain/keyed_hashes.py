"""Pseudonyms of email and network addresses."""

import hmac


def keyed_hash(hash_key: bytes, kind: str, text: str) -> str:
    """Return 32 hexadecimal digits that cannot be computed from `text` without the key.

    `kind` makes the hashes of different tables differ, so they cannot be joined.
    """
    return hmac.digest(hash_key, f"{kind} {text}".encode(), "sha256").hex()[:32]
