"""`weft key`: what its commands print, as lines and as JSON, and how they fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from weft.engine.__main__ import main
from weft.engine.broker.key_book import KeyBook
from weft.engine.broker.key_store import KeyStore


class Weft:
    """The command line on one state directory."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *words: str) -> str:
        """What a command prints."""
        assert main(["key", *words, "--state", str(self.folder)]) == 0
        return self._capsys.readouterr().out

    def json(self, *words: str) -> dict[str, Any]:
        """The same as JSON."""
        found = json.loads(self(*words, "--json"))
        assert isinstance(found, dict)
        return found

    def error(self, *words: str) -> str:
        """What a command says when it fails."""
        assert main(["key", *words, "--state", str(self.folder)]) == 1
        printed = self._capsys.readouterr()
        assert printed.out == ""
        return printed.err


@pytest.fixture
def weft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Weft:
    return Weft(tmp_path / "state", capsys)


def tenant(weft: Weft, secret: str) -> str | None:
    admission = KeyBook(KeyStore(weft.folder).secrets()).admit(secret, 0.0)
    return None if admission is None else admission.tenant


def test_a_created_key_is_shown_with_its_id_and_tenant(weft: Weft) -> None:
    printed = weft("create", "--tenant", "alice", "--name", "laptop")
    secret = printed.splitlines()[0].split()[1]
    (key,) = KeyStore(weft.folder).entries()
    assert tenant(weft, secret) == key.tenant
    for word in (key.key_id, f"alice ({key.tenant})", "laptop", "shown this once"):
        assert word in printed


def test_the_list_shows_no_secret(weft: Weft) -> None:
    secret = weft.json("create", "--tenant", "alice")["key"]
    weft("create", "--tenant", "bob")
    printed = weft("list")
    assert secret[4:] not in printed
    assert [line.split()[1] for line in printed.splitlines()] == ["TENANT", "alice", "bob"]
    assert "tml-" not in json.dumps(weft.json("list"))


def test_a_rotated_key_is_shown_anew(weft: Weft) -> None:
    made = weft.json("create")
    rotated = weft.json("rotate", made["key_id"])
    assert rotated["key_id"] == made["key_id"]
    assert tenant(weft, rotated["key"]) == made["tenant"]
    assert tenant(weft, made["key"]) is None


def test_a_grace_is_told_in_the_list(weft: Weft) -> None:
    made = weft.json("create")
    assert "The old one counts until" in weft("rotate", made["key_id"], "--grace", "3600")
    assert "active, the old secret until" in weft("list")
    assert tenant(weft, made["key"]) == made["tenant"]


def test_revoking_the_last_key_says_that_nobody_can_connect(weft: Weft) -> None:
    first, second = weft.json("create"), weft.json("create")
    assert "nobody can connect" not in weft("revoke", first["key_id"])
    assert "nobody can connect" in weft("revoke", second["key_id"])
    assert weft("list").count("revoked") == 2


def test_an_empty_list_says_who_may_connect(weft: Weft) -> None:
    assert "whoever reaches the server is the tenant local" in weft("list")
    assert weft.json("list") == {"keys": []}
    assert not weft.folder.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("revoke", "abc"), "no keys in"),
        (("rotate", "abc", "--grace", "-1"), "grace is -1 s"),
    ],
)
def test_a_mistake_is_a_sentence(weft: Weft, words: tuple[str, ...], said: str) -> None:
    assert said in weft.error(*words)


def test_a_damaged_file_is_named(weft: Weft) -> None:
    weft.folder.mkdir()
    (weft.folder / "keys.sqlite").write_bytes(b"")
    assert f"{weft.folder}/keys.sqlite is damaged" in weft.error("create")
