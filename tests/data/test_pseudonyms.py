from __future__ import annotations

import hashlib
import hmac
import stat

import pytest

from monai_basisprune.data.pseudonyms import keyed_salt, load_or_create_salt, pseudonym
from monai_basisprune.errors import CohortError, ConfigurationError


def test_pseudonym_is_an_hmac():
    expected = hmac.new(b"k" * 16, b"case\x001.2", hashlib.sha256).hexdigest()[:16]
    assert pseudonym(b"k" * 16, "case", "1.2") == expected
    assert pseudonym(b"k" * 16, "patient", "1.2") != expected


def test_salt_is_made_once(tmp_path):
    salt = load_or_create_salt(tmp_path)
    assert len(salt) == 32
    assert load_or_create_salt(tmp_path) == salt
    assert stat.S_IMODE((tmp_path / "salt").stat().st_mode) == 0o600
    (tmp_path / "salt").write_text("no hexadecimal digits")
    with pytest.raises(CohortError, match="restore it, or delete it"):
        load_or_create_salt(tmp_path)


def test_given_salt():
    assert keyed_salt("a" * 16) == b"a" * 16
    assert keyed_salt(None) != keyed_salt(None)
    with pytest.raises(ConfigurationError, match="at least 16 are needed"):
        keyed_salt("short")
