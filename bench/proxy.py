"""A proxy between the tool and a server, that breaks what a test or a benchmark tells it to break."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# What happens to a request: None, "drop" (before the server sees it), "deaf" (after it did its work), "cut"
# (half of the answer), "stall" (the server does its work, and the answer does not come), or an HTTP status that
# the server never gave.
Fault = str | int | None
KINDS: tuple[Fault, ...] = ("drop", "deaf", "cut", "stall", 500, 502, 429)


def seeded(seed: int, rate: float) -> Callable[[int, str, str], Fault]:
    """A choice for `faulty`: that share of the requests, drawn by chance, meets one of KINDS."""
    chance = random.Random(seed)
    return lambda number, method, path: chance.choice(KINDS) if chance.random() < rate else None


@contextlib.contextmanager
def faulty(url: str, choose: Callable[[int, str, str], Fault], stall: float = 1.0) -> Iterator[str]:
    """Run a proxy to `url`; yields its address.

    Args:
        url: the real server.
        choose: `choose(number, method, path)` says what happens to each request, counted from 0.
        stall: seconds until a stalled connection ends; more than the tool waits for an answer.
    """
    target = urlsplit(url)
    lock = threading.Lock()
    count = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            nonlocal count
            with lock:
                number, count = count, count + 1
                fault = choose(number, self.command, self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if fault == "drop":
                self.hang_up()
            elif isinstance(fault, int):
                self.answer(fault, {"Retry-After": "0"}, b"busy")
            else:
                status, headers, answer = self.ask(body)
                if fault == "stall":
                    time.sleep(stall)
                if fault in ("deaf", "stall"):
                    self.hang_up()
                elif fault == "cut":
                    self.answer(status, headers, answer, cut=True)
                else:
                    self.answer(status, headers, answer)

        do_GET = do_POST = do_PATCH = do_DELETE = relay  # noqa: N815

        def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
            headers = {
                name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"
            }
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            found = response.read()
            connection.close()
            return response.status, {"Content-Type": response.headers.get("content-type", "")}, found

        def answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(OSError):  # the tool may have gone
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
