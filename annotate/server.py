"""The embedded Label Studio of a workspace: started, found again and stopped.

The server process itself holds a lock on `.label-studio/server.lock` for as long as it lives. So whether it
runs is never guessed from a process id: a stale file cannot mislead, and two starts cannot race.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import ipaddress
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from annotate.errors import UserError
from annotate.files import read_json, write_whole
from annotate.lock import private_folder, take_lock
from annotate.progress import note
from annotate.workspace import Workspace

HOST = "127.0.0.1"
EMAIL = "annotator@localhost.local"
START_SECONDS = 300  # a first start migrates the database: half a minute, more on a busy machine
STOP_SECONDS = 10  # from the polite signal to the other one

# Networks that Label Studio refuses to send requests to by default, without loopback.
# Source: RFC 6890 and its successors; label_studio, core/utils/io.py (validate_ip).
RESERVED = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *(
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
    ),
    *("224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "::/128", "::1/128", "::ffff:0:0/96"),
    *("::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001:0000::/32", "2001:20::/28"),
    *("2001:db8::/32", "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8"),
)

# The address is written by the very process that becomes the server (same pid after exec), before it starts:
# there is no moment at which a server runs whose pid is unknown. Its files, which hold keys, are its user's alone.
_LAUNCH = (
    'umask 077 && printf \'{"pid": %s, "port": %s, "started": %s, "folder": %s}\' $$ "$1" "$2" "$3" > "$4.part" '
    '&& mv "$4.part" "$4" && shift 4 && exec "$@"'
)


@dataclass(frozen=True)
class Login:
    """How the person logs in at the embedded server, and how the tool does."""

    email: str
    password: str
    key: str

    def __repr__(self) -> str:
        return f"Login({self.email!r})"  # secrets stay out of tracebacks


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    url: str
    pid: int
    fresh: bool  # this call started it


def start(workspace: Workspace) -> Server:
    """Start the workspace's Label Studio, or find it running; returns when it answers.

    Raises:
        UserError: label-studio is not installed, or the server died or does not answer.
    """
    folder = workspace.studio_folder
    private_folder(folder)
    launched: subprocess.Popen[bytes] | None = None
    until = time.monotonic() + START_SECONDS
    while True:
        found = _answering(folder)
        if found is not None:
            return Server(_url(found["port"]), found["pid"], launched is not None)
        lock = take_lock(folder / "server.lock")
        if lock is None and _was_moved(folder):  # it looks for its data in the old place, and never answers
            note("The workspace was moved while its Label Studio ran: it is stopped, and started anew")
            stop(workspace)
        elif lock is None:  # a server that does not answer yet, or somebody who is starting one
            time.sleep(0.2)
        elif launched is not None:
            os.close(lock)
            raise UserError(
                f"Label Studio stopped while it started: {_last_line(folder)}; see {_log(folder)}"
            )
        else:
            launched = _launch(workspace, lock)
        if time.monotonic() > until:
            raise UserError(
                f"Label Studio does not answer after {START_SECONDS} s; see {_log(folder)}, "
                "then run `tool annotate stop` and try again"
            )


def running(workspace: Workspace) -> Server | None:
    """The workspace's server if it runs and answers; starts nothing."""
    found = _answering(workspace.studio_folder)
    return None if found is None else Server(_url(found["port"]), found["pid"], False)


def stop(workspace: Workspace) -> bool:
    """Stop the workspace's server; False where none was running.

    Raises:
        UserError: it does not go away.
    """
    folder = workspace.studio_folder
    if not folder.is_dir() or _is_free(folder):
        return False
    for how in (signal.SIGTERM, signal.SIGKILL):
        found = _record(folder)
        if found is not None and _is_label_studio(found["pid"]):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(found["pid"], how)
        if _wait(lambda: _is_free(folder), STOP_SECONDS):
            return True  # the record stays: the next start takes the same port if it can
    raise UserError(
        f"the Label Studio of {workspace.root} does not stop; see {_log(folder)}, and end it by hand"
    )


def login(workspace: Workspace) -> Login:
    """The embedded server's login and API key; made on first use, readable by this user only."""
    path = workspace.studio_folder / "login.json"
    if not path.exists():
        private_folder(workspace.studio_folder)
        fresh = {"email": EMAIL, "password": secrets.token_urlsafe(12), "key": secrets.token_hex(20)}
        write_whole(path, json.dumps(fresh), mode=0o600)
    found = read_json(path)
    try:
        return Login(str(found["email"]), str(found["password"]), str(found["key"]))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged; put it back from a copy, or delete {path.parent} and push again"
        ) from error


def _launch(workspace: Workspace, lock: int) -> subprocess.Popen[bytes]:
    """Start the process; it inherits the lock, and keeps it until it ends."""
    folder = workspace.studio_folder
    try:
        if importlib.util.find_spec("label_studio") is None:
            raise UserError(
                "label-studio is not installed; run `pip install 'impasto[server]'`, "
                "or set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY to a server of yours"
            )
        before = _record(folder)
        _address(folder).unlink(missing_ok=True)
        port = _free_port(before["port"] if before else 0)
        secret = login(workspace)
        _give_signing_key(folder)
        first = not (folder / "label_studio.sqlite3").exists()
        note("Starting Label Studio" + (" (the first time takes about half a minute)" if first else ""))
        server = [sys.executable, "-m", "label_studio.server", "start", "--no-browser"]
        server += ["--internal-host", HOST, "--port", str(port)]
        place = json.dumps(str(folder.resolve()))
        words = [str(port), str(int(time.time())), place, str(_address(folder).resolve()), *server]
        with os.fdopen(os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder, secret),
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C at the tool leaves it alone; it can be killed as a group
            )
    finally:
        os.close(lock)


def _environment(folder: Path, secret: Login) -> dict[str, str]:
    """What the server sees: none of the caller's LABEL_STUDIO_* settings, which are for another server."""
    ours = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder.resolve()),
        "LABEL_STUDIO_USERNAME": secret.email,
        "LABEL_STUDIO_PASSWORD": secret.password,
        "LABEL_STUDIO_USER_TOKEN": secret.key,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_ALLOWED_HOSTS": "127.0.0.1,localhost",
        # its protection against requests to reserved addresses stays on, all but for `segment assist`
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "USER_ADDITIONAL_BANNED_SUBNETS": ",".join(_banned_subnets()),
        "LABEL_STUDIO_AZURE_MOUNT_FIX": "true",  # SQLite in WAL mode: uploads take a quarter of the time
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
    theirs = ("LABEL_STUDIO_", "DJANGO_", "SECRET_KEY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return kept | ours


def _give_signing_key(folder: Path) -> None:
    """What the server signs logins and tokens with, in the file where it looks for it.

    It would make one itself, and one in fifty of its own begins with $, which it takes for the name of another variable
    and does not find again: each start makes another, and who was logged in no longer is.
    Source: label_studio, core/utils/secret_key.py.
    """
    if not (folder / ".env").exists():
        write_whole(folder / ".env", f"SECRET_KEY={secrets.token_hex(32)}\n", mode=0o600)


def _banned_subnets() -> list[str]:
    """Every reserved network but the one address 127.0.0.1, where `segment assist` listens."""
    loopback = ipaddress.IPv4Network("127.0.0.0/8").address_exclude(ipaddress.IPv4Network(f"{HOST}/32"))
    return [*RESERVED, *map(str, loopback)]


def _answering(folder: Path) -> dict[str, int] | None:
    """The recorded server, if one holds the lock and answers at its port."""
    found = _record(folder)
    if found is None or _is_free(folder):
        return None
    connection = http.client.HTTPConnection(HOST, found["port"], timeout=5)  # no proxy between
    try:
        connection.request("GET", "/health")
        return found if connection.getresponse().status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _record(folder: Path) -> dict[str, int] | None:
    try:
        found = json.loads(_address(folder).read_text())
        return {"pid": int(found["pid"]), "port": int(found["port"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _was_moved(folder: Path) -> bool:
    """Whether the recorded server was started when the folder lay elsewhere."""
    try:
        place = json.loads(_address(folder).read_text())["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(place != str(folder.resolve()))


def _is_free(folder: Path) -> bool:
    if not folder.is_dir():
        return True
    lock = take_lock(folder / "server.lock")
    if lock is not None:
        os.close(lock)
    return lock is not None


def _is_label_studio(pid: int) -> bool:
    """Whether a process leads its own group, as ours does, and (where /proc tells) runs Label Studio."""
    try:
        if os.getpgid(pid) != pid:
            return False
        return b"label_studio" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except ProcessLookupError:
        return False
    except OSError:  # no /proc here
        return True


def _free_port(wish: int) -> int:
    """The port of last time where it is still free (bookmarks go on working), else any free one."""
    for port in (wish, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise UserError(f"no free port on {HOST}; close some programs and try again")


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if done():
            return True
        time.sleep(0.05)
    return done()


def _last_line(folder: Path) -> str:
    lines = _log(folder).read_text(errors="replace").strip().splitlines() if _log(folder).exists() else []
    return lines[-1].strip()[:300] if lines else "no word in its log"


def _log(folder: Path) -> Path:
    return folder / "server.log"


def _address(folder: Path) -> Path:
    return folder / "server.json"


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"
