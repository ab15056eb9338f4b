"""Addresses and keys: either kind of key works, and each wrong one is one clear line."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from signed_in import personal_access_token

from annotate import connection, studio
from annotate.access import connect, embedded_or_configured
from annotate.errors import UserError
from annotate.workspace import Workspace
from bench.proxy import Fault, faulty


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)


@pytest.mark.server
def test_a_personal_access_token_works_until_it_is_revoked(
    remote: Workspace, embedded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = personal_access_token(embedded)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", f"{token}\n")  # as a shell's $(cat key) may leave it
    studio = connect(remote)
    made = studio.open_project(remote)
    assert connect(remote).project(remote) == made[0]
    # revoked in the middle: the access token of before lives on for five minutes, the next start is refused
    studio.connection.send("POST", "api/token/blacklist/", repeat=False, json={"refresh": token})
    with pytest.raises(UserError, match="refuses the key") as caught:
        connect(remote)
    assert token not in str(caught.getrepr(style="long", showlocals=False))
    studio.close()


@pytest.mark.server
@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("0" * 40, "refuses the key"),
        ("nonsense", "refuses the key"),
        ("two words", "not a key"),
        ("schlüssel", "not a key"),
        ("", "needs a key"),
    ],
)
def test_a_wrong_key_is_one_line(
    remote: Workspace, monkeypatch: pytest.MonkeyPatch, key: str, line: str
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    with pytest.raises(UserError, match=line) as caught:
        connect(remote)
    assert "\n" not in caught.value.message
    assert not key or key not in caught.value.message


@pytest.mark.server
def test_an_expired_or_forged_token_is_one_line(remote: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def token(**claims: object) -> str:
        parts = [{"alg": "HS256", "typ": "JWT"}, {"token_type": "refresh", "jti": "x", **claims}]
        words = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        return ".".join([*words, "c2ln"])

    for claims in ({"exp": 1}, {"exp": 4_000_000_000}, {}):
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", token(**claims))
        with pytest.raises(UserError, match="refuses the key"):
            connect(remote)


def test_a_project_is_found_again_whatever_its_title_is(
    remote: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its description: the title is that of the workspace's folder, which may be renamed."""
    monkeypatch.setattr(studio, "PROJECTS", 2)
    there = connect(remote)
    first, _ = there.open_project(remote)
    part = there.compositions_project(remote, make=True)
    remote.root.rename(remote.root.with_name("renamed"))
    moved = Workspace(remote.root.with_name("renamed"))
    for name in ("one", "two", "three"):  # newer ones are listed before
        there.connection.send("POST", "api/projects/", repeat=False, json={"title": name})
    assert there.compositions_project(moved, make=False) == part
    moved.settings_file.unlink()
    assert there.open_project(moved) == (first, False)
    there.close()


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:1", "does not answer"),
        ("http://no-such-host.invalid:8080", "does not answer"),
        ("localhost:8080", "write it like http://localhost:8080"),
        ("ftp://127.0.0.1", "write it like"),
        ("http://127.0.0.1:99999", "write it like"),
        ("", "needs a key|Label Studio"),
    ],
)
def test_a_wrong_address_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, line: str
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    if not url:  # tool.toml names one, and the environment has no key for it
        workspace.save_settings(studio_url="http://127.0.0.1:1")
        monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    monkeypatch.setenv("LABEL_STUDIO_URL", url)
    with pytest.raises(UserError, match=line):
        connect(workspace)


def test_another_web_server_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    with faulty("http://127.0.0.1:1", lambda number, method, path: 404) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        with pytest.raises(UserError, match="is not a Label Studio"):
            connect(Workspace(tmp_path))


@pytest.mark.server
def test_a_token_is_renewed_through_a_bad_connection(
    remote: Workspace, embedded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = personal_access_token(embedded)
    refreshed = 0

    def choose(number: int, method: str, path: str) -> Fault:
        nonlocal refreshed
        refreshed += "token/refresh" in path
        return (502, "drop", None)[min(refreshed, 3) - 1] if "token/refresh" in path else None

    with faulty(os.environ["LABEL_STUDIO_URL"], choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
        studio = connect(remote)
        assert refreshed == 3
        studio.connection.send("POST", "api/token/blacklist/", repeat=False, json={"refresh": token})
        studio.close()


def test_looking_starts_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    assert embedded_or_configured(Workspace(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
