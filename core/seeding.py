"""Seeds derived from one number, so that every random thing can be repeated on its own."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 31-bit seed for one purpose: ``sha256(seed, purpose)``, the same on every machine and rank."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
