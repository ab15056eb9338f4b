"""HTTP to Label Studio: what is tried again, what is not, and what each failure says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from annotate import connection
from annotate.connection import Connection, MissingError, UnavailableError, UnsureError
from annotate.errors import UserError

Answer = httpx.Response | Exception


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)


def connect(
    *answers: Answer, headers: Callable[[], Mapping[str, str]] = dict
) -> tuple[Connection, list[httpx.Request]]:
    """A connection whose server gives these answers in turn, the last one for ever; and what it was asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    client = httpx.Client(transport=httpx.MockTransport(handle))
    return Connection("http://studio", headers, client), asked


def ok(value: Any) -> httpx.Response:
    return httpx.Response(200, json=value)


@pytest.mark.parametrize(
    "fault",
    [
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.Response(502),
        httpx.Response(503, headers={"Retry-After": "soon"}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut short"),
        httpx.Response(200, content=b'{"half": '),
        httpx.Response(200, content=b"\xff\xfe"),
    ],
)
def test_a_passing_fault_is_not_seen(fault: Answer) -> None:
    there, asked = connect(fault, fault, ok({"a": 1}))
    assert there.get("api/x", {"q": "1"}) == {"a": 1}
    assert [str(one.url) for one in asked] == ["http://studio/api/x?q=1"] * 3


@pytest.mark.parametrize(
    "fault",
    [
        httpx.Response(502),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.ReadError("reset"),
    ],
)
def test_what_must_not_be_done_twice_is_not_sent_twice(fault: Answer) -> None:
    there, asked = connect(fault, ok({}))
    with pytest.raises(UnsureError, match="run the command again"):
        there.send("POST", "api/x", repeat=False, json={})
    assert len(asked) == 1


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.Response(429)])
def test_what_the_server_never_took_is_sent_again(fault: Answer) -> None:
    there, asked = connect(fault, ok({"id": 3}))
    assert there.send("POST", "api/x", repeat=False, json=[1]) == {"id": 3}
    assert [json.loads(one.content) for one in asked] == [[1], [1]]


def test_a_server_that_stays_away_is_one_line() -> None:
    there, asked = connect(httpx.ConnectError("[Errno 111] Connection refused"))
    with pytest.raises(
        UserError, match=r"does not answer \(\[Errno 111\] Connection refused\); check LABEL_STUDIO_URL"
    ):
        there.get("api/x")
    assert len(asked) == connection.TRIES


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (httpx.Response(401, json={"detail": "Invalid token."}), "refuses the key"),
        (httpx.Response(403), "refuses the key"),
        (httpx.Response(301, headers={"location": "https://elsewhere/"}), "https://elsewhere/"),
        (httpx.Response(200, html="<p>hello</p>"), "is not a Label Studio"),
        (httpx.Response(400, json={"validation_errors": {"label_config": ["bad\nlabel"]}}), "bad"),
        (httpx.Response(413, content=b"too large"), "413"),
    ],
)
def test_a_refusal_is_one_line_and_final(answer: httpx.Response, line: str) -> None:
    there, asked = connect(answer)
    with pytest.raises(UserError, match=line) as caught:
        there.get("api/x")
    assert "\n" not in caught.value.message
    assert len(asked) == 1


def test_what_is_gone_has_its_own_error() -> None:
    there, _ = connect(httpx.Response(404, json={"detail": "No Project matches"}))
    with pytest.raises(MissingError, match="No Project matches"):
        there.get("api/projects/9/")


def test_an_endless_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_BYTES", 1000)
    there, _ = connect(httpx.Response(200, content=b"1" * 5000))
    with pytest.raises(UserError, match="refused"):
        there.get("api/x")


def test_headers_that_cannot_be_had_now_are_asked_for_again() -> None:
    calls = 0

    def headers() -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise UnavailableError("it answers 502")
        return {"Authorization": "Bearer x"}

    there, asked = connect(ok(1), headers=headers)
    assert there.send("POST", "api/x", repeat=False) == 1
    assert [one.headers["authorization"] for one in asked] == ["Bearer x"]


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("99999", 30.0), ("-3", 0.0), ("nan", 0.0), ("x", 0.0)]
)
def test_retry_after_is_honoured_within_reason(value: str, seconds: float) -> None:
    assert connection._retry_after(httpx.Response(429, headers={"Retry-After": value})) == seconds
