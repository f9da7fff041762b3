"""Pseudonyms: salted hashes in place of patient ids and SOPInstanceUIDs, stable as long as the salt is kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.reading import read_bytes

__all__ = ["keyed_salt", "load_or_create_salt", "pseudonym"]

SALT_FILE = "salt"
_MINIMUM_BYTES, _MOST_BYTES = 16, 4096


def keyed_salt(salt: str | bytes | None) -> bytes:
    """Return a salt as bytes; ``None`` makes a random one that is forgotten with the process.

    Raises:
        ConfigurationError: when the salt is shorter than 16 bytes, which a list of all patient ids could break.
    """
    if salt is None:
        return secrets.token_bytes(32)
    raw = salt.encode() if isinstance(salt, str) else bytes(salt)
    if len(raw) < _MINIMUM_BYTES:
        raise ConfigurationError(
            f"salt has {len(raw)} bytes, at least {_MINIMUM_BYTES} are needed; leave it out to have one made"
        )
    return raw


def load_or_create_salt(folder: Path) -> bytes:
    """Return the secret in the file ``salt`` of a folder; make it (mode 600) where there is none.

    Raises:
        CohortError: when the file is there but cannot be used.
    """
    path = folder / SALT_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            salt = bytes.fromhex(read_bytes(path, _MOST_BYTES).decode("ascii").strip())
        except (OSError, ValueError):
            salt = b""
        if len(salt) < _MINIMUM_BYTES:
            raise CohortError(
                "The file 'salt' beside the datalist should hold at least 16 bytes as hexadecimal digits and does not; "
                "restore it, or delete it (case ids and patient ids will then change)"
            ) from None
        return salt
    salt = secrets.token_bytes(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(salt.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return salt


def pseudonym(salt: bytes, kind: str, value: str) -> str:
    """Hash a value (HMAC-SHA256, 16 hexadecimal digits); `kind` keeps equal values of two kinds apart."""
    return hmac.new(salt, f"{kind}\0{value}".encode(), hashlib.sha256).hexdigest()[:16]
