"""What stands for an email address or a network address where it must not be read."""

import hmac


def keyed_hash(hash_key: bytes, kind: str, text: str) -> str:
    """Return 32 hexadecimal digits that only those who have the key can compute from `text`.

    `kind` keeps hashes of different tables apart, so that nobody can join them.
    """
    return hmac.digest(hash_key, f"{kind} {text}".encode(), "sha256").hex()[:32]
