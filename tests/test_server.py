"""The embedded Label Studio: one per workspace, for this machine only, with secrets that stay secret."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from conftest import Painter
from signed_in import signed_in

from annotate import server
from annotate.commands import annotate
from annotate.errors import UserError
from annotate.workspace import Workspace

# What takes the place of Label Studio where only starting and stopping matters.
ANSWERS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `label_studio` whose server is the test's own; returns the file of that server."""
    package = tmp_path / "path" / "label_studio"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "server.py").write_text(ANSWERS)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "server.py"


@pytest.mark.server
def test_the_embedded_server_is_private(embedded: Workspace) -> None:
    running = server.running(embedded)
    assert running is not None
    assert running.url.startswith("http://127.0.0.1:")
    folder = embedded.studio_folder
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("login.json", "server.log", ".env"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name
    login = server.login(embedded)
    log = (folder / "server.log").read_text()
    assert login.key not in log
    assert login.password not in log
    assert login.key not in repr(login) + str(login)
    command = Path(f"/proc/{running.pid}/cmdline").read_bytes().decode()
    assert login.key not in command
    assert login.password not in command
    environment = dict(
        line.split("=", 1)
        for line in Path(f"/proc/{running.pid}/environ").read_bytes().decode().split("\0")
        if line
    )
    assert environment["COLLECT_ANALYTICS"] == environment["LATEST_VERSION_CHECK"] == "false"
    assert environment["SENTRY_DSN"] == environment["FRONTEND_SENTRY_DSN"] == ""


@pytest.mark.server
def test_whoever_is_logged_in_stays_so_when_the_server_starts_again(embedded: Workspace) -> None:
    email = server.login(embedded).email
    with signed_in(embedded) as client:
        assert server.stop(embedded)
        again = server.start(embedded)
        assert again.url == client.base_url  # a bookmark goes on working, too
        assert client.get("/api/current-user/whoami").json()["email"] == email
    # one key, not another for each start, and none that the server takes for a variable's name
    lines = (embedded.studio_folder / ".env").read_text().split()
    assert len(lines) == 1
    assert not lines[0].startswith("SECRET_KEY=$")


@pytest.mark.server
def test_sign_up_is_closed(embedded: Workspace) -> None:
    running = server.running(embedded)
    assert running is not None
    with httpx.Client(base_url=running.url) as client:
        token = client.get("/user/login/").cookies["csrftoken"]
        form = {"email": "stranger@example.com", "password": "long enough 123", "csrfmiddlewaretoken": token}
        refused = client.post("/user/signup/", data=form, headers={"Referer": running.url})
        assert refused.status_code == 403
        assert client.get("/api/projects/").status_code == 401
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.server
def test_a_running_server_is_found_again_by_every_command(embedded: Workspace) -> None:
    before = server.running(embedded)
    assert before is not None
    after = server.start(embedded)
    assert (after.pid, after.url, after.fresh) == (before.pid, before.url, False)
    done = CliRunner().invoke(annotate, ["serve", "--json", "-w", str(embedded.root)])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    login = server.login(embedded)
    assert (shown["url"], shown["email"], shown["password"]) == (before.url, login.email, login.password)
    assert login.key not in done.output


def test_two_starts_at_once_make_one_server(tmp_path: Path, impostor: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: server.start(workspace), range(4)))
        assert len({(one.pid, one.url) for one in found}) == 1
        assert sum(one.fresh for one in found) == 1
        again = server.start(workspace)
        assert (again.pid, again.fresh) == (found[0].pid, False)
    finally:
        assert server.stop(workspace)
    assert server.running(workspace) is None
    assert not server.stop(workspace)


def test_a_workspace_that_is_moved_while_its_server_runs_gets_another(tmp_path: Path, impostor: Path) -> None:
    """Label Studio finds its database no more, and answers 500 to everything."""
    gone = "500 if not os.path.isdir(os.environ['LABEL_STUDIO_BASE_DATA_DIR']) else 200"
    impostor.write_text(ANSWERS.replace("import", "import os,", 1).replace("(200)", f"({gone})"))
    (tmp_path / "old 'one'").mkdir()
    first = server.start(Workspace(tmp_path / "old 'one'"))
    (tmp_path / "old 'one'").rename(tmp_path / "new")
    moved = Workspace(tmp_path / "new")
    try:
        assert server.running(moved) is None
        second = server.start(moved)
        assert second.fresh
        assert second.pid != first.pid
        assert server.start(moved).pid == second.pid
    finally:
        assert server.stop(moved)


def test_a_server_that_was_killed_is_no_server(tmp_path: Path, impostor: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    first = server.start(workspace)
    os.kill(first.pid, 9)
    os.waitpid(first.pid, 0)
    assert server.running(workspace) is None
    # the record now names a process that is none of ours; it must survive
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    try:
        record = workspace.studio_folder / "server.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": bystander.pid}))
        assert not server.stop(workspace)
        second = server.start(workspace)
        assert second.fresh
        assert second.url == first.url, "bookmarks go on working"
        assert server.stop(workspace)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_server_that_is_deaf_to_the_polite_signal_is_ended(
    tmp_path: Path, impostor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor.write_text("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANSWERS)
    monkeypatch.setattr(server, "STOP_SECONDS", 0.3)
    workspace = Workspace(tmp_path / "workspace")
    server.start(workspace)
    assert server.stop(workspace)
    assert server.running(workspace) is None


def test_a_server_that_dies_says_its_last_word(tmp_path: Path, impostor: Path) -> None:
    impostor.write_text("raise SystemExit('no space for the database')")
    with pytest.raises(UserError, match="stopped while it started: no space for the database"):
        server.start(Workspace(tmp_path / "workspace"))


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, impostor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(server, "START_SECONDS", 0.5)
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(UserError, match="tool annotate stop"):
        server.start(workspace)
    assert server.stop(workspace)


def test_without_label_studio_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'impasto\[server\]'"):
        server.start(Workspace(tmp_path))
    handle = os.open(tmp_path / ".label-studio" / "server.lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go again
    os.close(handle)


@pytest.mark.parametrize("command", [("serve",), ("push", "paintings")])
def test_a_workspace_that_cannot_be_made_is_one_line(
    tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "paintings" / "a.png")
    (tmp_path / "file").touch()
    done = CliRunner().invoke(annotate, [*command, "-w", "file/workspace"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: file/workspace: no folder can be made there (Not a directory)" in done.stderr


def test_stop_where_nothing_ever_ran(tmp_path: Path) -> None:
    done = CliRunner().invoke(annotate, ["stop", "-w", str(tmp_path / "nowhere")])
    assert (done.exit_code, done.stdout) == (0, "no Label Studio of this workspace was running\n")
    assert not (tmp_path / "nowhere").exists()


def test_the_callers_own_label_studio_settings_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "theirs")
    monkeypatch.setenv("DJANGO_DB", "default")
    monkeypatch.setenv("SECRET_KEY", "of another program")
    found = server._environment(tmp_path, server.login(Workspace(tmp_path)))
    assert "theirs" not in found.values()
    assert "DJANGO_DB" not in found
    assert "SECRET_KEY" not in found
    assert found["LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK"] == "true"
