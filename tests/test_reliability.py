"""Push and pull while things break: nothing twice, nothing lost, old masks whole, keys nowhere.

A few runs of what `bench/reliability.py` does twenty times, and what happens once in a while: a server that
restarts, a token that expires, a disk that is full.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Painter
from signed_in import personal_access_token

from annotate import connection, server
from annotate.access import connect
from annotate.commands import annotate
from annotate.config import PullConfig
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, write_mask
from annotate.pull import pull
from annotate.workspace import Workspace
from bench import reliability
from bench.proxy import Fault, faulty
from bench.push import paint as paint_many

pytestmark = pytest.mark.server
COUNT = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint_many(tmp_path / "paintings", COUNT, reliability.SIZE)
    return tmp_path / "paintings"


@pytest.fixture
def drawn(remote: Workspace, folder: Path) -> Workspace:
    """A workspace whose paintings are all annotated, and none is pulled."""
    return reliability.annotated(remote, folder, os.environ["LABEL_STUDIO_URL"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(reliability, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(reliability, "STALL", 1.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", [100, 101])
def test_a_push_over_a_faulty_line_makes_every_task_once(
    remote: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("annotate.push.BATCH_FILES", 5)
    ending = reliability.push_through(remote, folder, os.environ["LABEL_STUDIO_URL"], seed)
    assert (ending.twice, ending.lost) == (0, 0)
    assert all("\n" not in line for line in ending.lines)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", [100, 101])
def test_a_pull_over_a_faulty_line_brings_every_mask(drawn: Workspace, seed: int) -> None:
    ending = reliability.pull_through(drawn, os.environ["LABEL_STUDIO_URL"], seed)
    assert ending.lost == 0
    assert all("\n" not in line for line in ending.lines)


def test_a_killed_push_and_a_killed_pull_complete_when_run_again(
    drawn: Workspace, folder: Path, tmp_path: Path
) -> None:
    for seed in range(2):
        pushed = reliability.push_killed(Workspace(tmp_path / f"push-{seed}"), folder, random.Random(seed))
        assert (pushed.twice, pushed.lost) == (0, 0)
    assert reliability.pull_killed(drawn, random.Random(1)).lost == 0


@pytest.mark.slow
def test_a_server_that_restarts_in_the_middle_is_waited_for(
    embedded: Workspace, drawn: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete, or one clear line and complete when run again."""
    asked = 0
    restart = threading.Thread(target=lambda: (server.stop(embedded), server.start(embedded)))

    def choose(number: int, method: str, path: str) -> Fault:
        nonlocal asked
        asked += "api/annotations/" in path
        if asked == COUNT // 2 and not restart.ident:
            restart.start()
        return None

    with faulty(os.environ["LABEL_STUDIO_URL"], choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        drawn.save_settings(studio_url=url)
        try:
            problems = pull(drawn, PullConfig()).problems
        except UserError as error:
            problems = (error.message,)
        restart.join()
        assert server.running(embedded) is not None
        assert not any("\n" in line for line in problems), problems
        assert pull(drawn, PullConfig()).problems == ()
    assert reliability._lost(drawn) == 0


def signed(embedded: Workspace, token: str, seconds: float) -> str:
    """The same token with another end, signed by the server's own key: it does expire there."""
    lines = (embedded.studio_folder / ".env").read_text().splitlines()
    (secret,) = (line.split("=", 1)[1] for line in lines if line.startswith("SECRET_KEY="))
    claims = jwt.decode(token, secret, algorithms=["HS256"])
    return jwt.encode(claims | {"exp": int(time.time() + seconds)}, secret, algorithm="HS256")


@pytest.fixture
def token(embedded: Workspace) -> Iterator[str]:
    """A personal access token, revoked at the end: a person has one at a time."""
    made = personal_access_token(embedded)
    yield made
    login = server.login(embedded)
    running = server.running(embedded)
    assert running is not None
    headers = {"Authorization": f"Token {login.key}"}
    httpx.post(f"{running.url}/api/token/blacklist/", headers=headers, json={"refresh": made})


def test_a_token_that_expires_in_the_middle_is_one_line_and_old_masks_stay(
    embedded: Workspace, drawn: Workspace, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the personal token and the access token really run out, on the real server."""
    old = np.full(reliability.SIZE, 148, np.uint8)
    for path in (drawn.mask("hand", f"{n:05}") for n in range(COUNT)):
        write_mask(path, old, Encoding.RAW)
    original = httpx.Response.json

    def short(self: httpx.Response, **options: Any) -> Any:
        found = original(self, **options)
        if isinstance(found, dict) and "access" in found:
            found["access"] = signed(embedded, found["access"], 2)
        return found

    monkeypatch.setattr(httpx.Response, "json", short)

    def choose(number: int, method: str, path: str) -> Fault:
        if "api/annotations/" in path:
            time.sleep(0.5)
        return None

    real = os.environ["LABEL_STUDIO_URL"]
    with faulty(real, choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", signed(embedded, token, 5))
        drawn.save_settings(studio_url=url)
        done = CliRunner().invoke(annotate, ["pull", "-w", str(drawn.root)])
    assert done.exit_code == 1, done.output
    assert "Label Studio refuses the key" in done.stderr
    assert "Traceback" not in done.output
    assert token[-20:] not in done.output
    masks = [read_mask(drawn.mask("hand", f"{n:05}"), Encoding.RAW) for n in range(COUNT)]
    renewed = [np.array_equal(mask, reliability.truth(f"{n:05}")) for n, mask in enumerate(masks)]
    assert all(is_new or np.array_equal(mask, old) for mask, is_new in zip(masks, renewed, strict=True))
    assert 0 < sum(renewed) < COUNT, "in the middle"
    monkeypatch.setenv("LABEL_STUDIO_URL", real)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    drawn.save_settings(studio_url=real)
    assert pull(drawn, PullConfig()).problems == ()
    assert reliability._lost(drawn) == 0


def test_an_access_token_that_the_server_drops_early_is_renewed(
    remote: Workspace, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a server whose clock is ahead: it says 401 while the SDK holds the token to be good."""
    refused = {5, 9}

    def choose(number: int, method: str, path: str) -> Fault:
        return 401 if number in refused and "token" not in path else None

    with faulty(os.environ["LABEL_STUDIO_URL"], choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
        there = connect(remote)
        project, _ = there.open_project(remote)
        for _ in range(8):
            assert list(there.tasks(project)) == []
        refused |= set(range(1000))
        with pytest.raises(UserError, match="refuses the key"):
            list(there.tasks(project))
        there.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for some twenty masks; needs the right to mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=80k", "none", str(place)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a small file system here; the test with a file-size limit runs anyway")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_old_masks_stay(drawn: Workspace, small_disk: Path) -> None:
    old = np.full(reliability.SIZE, 148, np.uint8)
    (drawn.root / "masks").mkdir()
    drawn.masks("hand").symlink_to(small_disk)
    keys = [f"{n:05}" for n in range(COUNT)]
    for key in keys[:12]:
        write_mask(drawn.mask("hand", key), old, Encoding.RAW)
    done = CliRunner().invoke(annotate, ["pull", "-w", str(drawn.root)])
    assert done.exit_code == 1, done.output
    assert "the disk is full; free some space and run the command again" in done.stderr
    assert "Traceback" not in done.output
    for key in keys[:12]:
        mask = read_mask(drawn.mask("hand", key), Encoding.RAW)
        assert np.array_equal(mask, old) or np.array_equal(mask, reliability.truth(key))
    assert not list(small_disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert pull(drawn, PullConfig()).problems == ()
    assert reliability._lost(drawn) == 0


def test_a_file_that_the_system_refuses_to_let_grow_leaves_the_old_one(tmp_path: Path) -> None:
    """The same where nothing may be mounted: the system stops the write half way (RLIMIT_FSIZE)."""
    path = tmp_path / "mask.png"
    old = np.full((30, 40), 148, np.uint8)
    write_mask(path, old, Encoding.RAW)
    code = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from annotate.masks import Encoding, write_mask; from annotate.errors import UserError\n"
        "noise = np.random.default_rng(0).integers(0, 180, (300, 400), np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_mask(Path(sys.argv[1]), noise, Encoding.RAW)\n"
        "except UserError as error: sys.exit(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert np.array_equal(read_mask(path, Encoding.RAW), old)
    assert [one.name for one in tmp_path.iterdir()] == ["mask.png"]


def command_lines() -> str:
    """Of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_keys_lie_in_one_file_and_show_nowhere(
    embedded: Workspace, tmp_path: Path, paint: Painter, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All commands, with the embedded server's key and with a personal token, going well and going wrong."""
    paint(tmp_path / "paintings" / "a.png")
    login = server.login(embedded)
    running = server.running(embedded)
    assert running is not None
    own = Workspace(tmp_path / "workspace")
    said, seen = [], []

    def call(*words: str, **environment: str) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "cli", *words], env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while child.poll() is None:
            seen.append(command_lines())
            time.sleep(0.2)
        assert child.stdout is not None
        said.append(child.stdout.read())

    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder, place = str(tmp_path / "paintings"), str(embedded.root)
    call("annotate", "push", folder, "-w", place, "--json")
    call("annotate", "pull", "-w", place)
    remote = {"LABEL_STUDIO_URL": running.url, "LABEL_STUDIO_API_KEY": token}
    call("annotate", "push", folder, "-w", str(own.root), **remote)
    call("annotate", "status", "-w", str(own.root), "--json", **remote)
    call("annotate", "pull", "-w", str(own.root), **remote | {"LABEL_STUDIO_API_KEY": f"{token}x"})
    call(
        "annotate",
        "pull",
        "-w",
        str(own.root),
        **remote | {"LABEL_STUDIO_URL": f"http://x:{login.key}@127.0.0.1:1"},
    )
    assert "refuses the key" in said[-2]
    assert "holds a login" in said[-1]
    for secret in (login.key, token, token.split(".")[2]):
        assert secret not in "\n".join(said)
        assert secret not in "\n".join(seen)
    assert login.password not in "\n".join(seen)
    where = [
        path for root in (own.root, embedded.root) for path in root.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in (login.key, token))
    ]  # fmt: skip
    ours = [path for path in where if not path.name.startswith("label_studio.sqlite3")]
    assert ours == [embedded.studio_folder / "login.json"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in where), "the server's database too"


def test_a_server_that_repeats_the_key_does_not_make_us_repeat_it() -> None:
    key = "0123456789abcdef" * 2

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"detail": f"bad: {request.headers['authorization']}"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    there = connection.Connection("http://studio", lambda: {"Authorization": f"Token {key}"}, client)
    with pytest.raises(UserError, match=r"bad: Token \.\.\.") as caught:
        there.get("api/x")
    assert key not in caught.value.message
