"""A peer that speaks Label Studio's API and means harm: each test says what it answers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# What a path answers: JSON, bytes as they are, or pieces (headers first) sent until the other side hangs up.
Answer = Any


class Pieces:
    """A body that is sent in pieces, with its headers."""

    def __init__(self, piece: bytes, count: int, headers: Mapping[str, str] | None = None) -> None:
        self.piece = piece
        self.count = count
        self.headers = dict(headers or {})
        self.sent = 0  # bytes that the other side took


def task(number: int, key: Any, annotation: int | None = None, **changes: Any) -> dict[str, Any]:
    """A task of a listing, as Label Studio has it."""
    annotations = []
    if annotation is not None:
        annotations.append(
            {
                "id": annotation,
                "updated_at": "2026-01-01T00:00:00.000000Z",
                "was_cancelled": False,
                "lead_time": 60.0,
                "completed_by": 1,
            }
        )
    row: dict[str, Any] = {"id": number, "data": {"image": "/data/x.png", "key": key, "sha256": "0" * 64}}
    row["updated_at"] = "2026-01-01T00:00:00.000000Z"
    return row | {"annotations": annotations, "drafts": [], "predictions": []} | changes


@contextlib.contextmanager
def speaking(answers: Mapping[str, Answer]) -> Iterator[str]:
    """Run the peer; yields its address. A path that is not named answers 404.

    Args:
        answers: by path. The listing `/api/tasks/` takes a list of tasks, and gives it a page at a time.
    """
    base: dict[str, Answer] = {
        "/api/current-user/whoami": {"email": "x@example.org"},
        "/api/projects/1/": {"id": 1},
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, asked = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            found = (base | dict(answers)).get(path)
            if path == "/api/tasks/" and isinstance(found, list):
                size, page = int(asked["page_size"][0]), int(asked["page"][0])
                found = {"tasks": found[(page - 1) * size : page * size], "total": len(found)}
            if isinstance(found, Pieces):
                self.send_pieces(found)
            else:
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def send_pieces(self, found: Pieces) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.piece) * found.count))
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):
                for _ in range(found.count):
                    self.wfile.write(found.piece)
                    found.sent += len(found.piece)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    peer = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    peer.daemon_threads = True
    thread = threading.Thread(target=peer.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{peer.server_port}"
    finally:
        peer.shutdown()
        peer.server_close()
        thread.join()
