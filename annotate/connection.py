"""HTTP to Label Studio: retries where they can do no harm, bounded answers, one-line errors."""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from annotate.errors import UserError

TRIES = 7  # with the waits below about 20 s: a server that restarts is back by then
FIRST_WAIT = 0.3  # seconds; doubled each time
LONGEST_WAIT = 30.0  # whatever Retry-After asks for
MOST_BYTES = 64 * 2**20  # of one answer; an annotation of a 100-megapixel painting has a tenth of it
MOST_TOKEN_BYTES = 2**16  # of an answer about a token; unpacked it is a thousand times that at most
MOST_PARTS = 1_000_000  # lists and objects in one answer: each takes 30 times its two bytes once it is read
LONGEST_ANSWER = 300.0  # seconds from the first byte to the last; a byte a minute would never time out
_BUSY = (500, 502, 503, 504)


class MissingError(UserError):
    """The server has no such thing (any more)."""


class AnswerError(UserError):
    """The server is there, but its answer to this one request cannot be used, however often it is asked."""


class UnansweredError(AnswerError):
    """Asked again and again, the server gave no usable answer: it may be broken altogether."""


class UnsureError(UserError):
    """The connection broke after something was sent that must not be sent twice: it may have been done."""


class UnavailableError(Exception):
    """The server did not answer as it should; asking again may help, in `wait` seconds at the earliest."""

    def __init__(self, reason: str, wait: float = 0.0, absent: bool = False, answered: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.absent = absent  # nothing listens there
        self.answered = answered  # with something that cannot be used


class _StaleError(Exception):
    """The server does not take the access token (any more); nothing was done."""


class _RefusedError(UnavailableError):
    """Nothing was done on the server's side."""


def limit(response: httpx.Response) -> None:
    """A hook for the client: no answer is unpacked twice, and one about a token ends after some kilobytes.

    Raises:
        httpx.DecodingError: packed as only somebody does who wants to make a megabyte a terabyte.
    """
    packed = response.headers.get("content-encoding", "identity").lower()
    if packed not in ("identity", "gzip", "deflate"):
        raise httpx.DecodingError(f"an answer packed as {packed[:40]!r} is refused", request=response.request)
    if "/token/" in response.request.url.path and isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Limited(response.stream)


class _Limited(httpx.SyncByteStream):
    """The bytes of an answer that says what a token is."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        for chunk in self._stream:
            total += len(chunk)
            if total > MOST_TOKEN_BYTES:
                raise httpx.RemoteProtocolError("a token without end")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class Connection:
    """One server and one key.

    Args:
        url: the server's address, without a path of the API.
        headers: gives the authorisation headers; asked before each request, as tokens run out. It may raise
            `UnavailableError` or `UserError`.
        client: the HTTP client; closed with the connection.
        renew: called when the server refuses the headers; whether new ones can be had.
    """

    def __init__(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        client: httpx.Client,
        renew: Callable[[], bool] = bool,
    ) -> None:
        self.url = url
        self._headers = headers
        self._client = client
        self._renew = renew

    def get(self, path: str, params: Mapping[str, Any] | None = None, patient: bool = True) -> Any:
        """JSON of one GET. Without patience, a server that is not there is not waited for."""
        return self._request("GET", path, True, {"params": params}, patient)

    def send(self, method: str, path: str, *, repeat: bool, **content: Any) -> Any:
        """POST, PATCH or DELETE; the answer's JSON, None where it has no body.

        Args:
            repeat: whether doing it twice does no harm. Without it, a break after sending is `UnsureError`.
            content: httpx's own `json`, `files` or `params`.
        """
        return self._request(method, path, repeat, content)

    def close(self) -> None:
        self._client.close()

    def _request(
        self, method: str, path: str, repeat: bool, content: Mapping[str, Any], patient: bool = True
    ) -> Any:
        wait, reason, answered, renewed = 0.0, "", False, False
        for attempt in range(TRIES):
            time.sleep(wait)
            wait = FIRST_WAIT * 2**attempt * random.uniform(0.8, 1.2)
            try:
                return self._once(method, path, content)
            except _StaleError as error:
                if renewed or not self._renew():
                    raise self._refused_key() from error
                reason, wait, renewed = "it refuses the access token", 0.0, True
            except _RefusedError as error:  # not taken by the server: asking again is always safe
                reason, wait = str(error), max(wait, error.wait)
                answered = error.answered
                if error.absent and attempt and not patient:
                    break
            except UnavailableError as error:
                reason, wait, answered = str(error), max(wait, error.wait), error.answered
                if not repeat:
                    raise UnsureError(
                        f"{self.url}: the connection broke ({reason}); run the command again"
                    ) from error
        raise (UnansweredError if answered else UserError)(
            f"{self.url}: Label Studio does not answer ({reason}); "
            "check LABEL_STUDIO_URL and that the server runs, then run the command again"
        )

    def _once(self, method: str, path: str, content: Mapping[str, Any]) -> Any:
        try:
            headers = dict(self._headers())
        except UnavailableError as error:
            raise _RefusedError(str(error)) from error
        begun = False  # to answer
        try:
            with self._client.stream(method, f"{self.url}/{path}", headers=headers, **content) as response:
                begun = True
                body = self._read(response, path)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _RefusedError(_reason(error), absent=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            begun = begun or isinstance(error, httpx.DecodingError)
            raise UnavailableError(_reason(error), answered=begun) from error
        status = response.status_code
        if status == 429:
            raise _RefusedError("it answers 429", wait=_retry_after(response))
        if status in _BUSY:
            raise UnavailableError(f"it answers {status}", wait=_retry_after(response), answered=True)
        if status == 401:
            raise _StaleError(f"it answers {status}")
        if status >= 300:
            raise self._refusal(response, body, path, headers)
        if (parts := body.count(b"[") + body.count(b"{")) > MOST_PARTS:
            raise AnswerError(f"{self.url}/{path}: an answer of {parts} parts is refused")
        try:
            return json.loads(body) if body else None
        except (ValueError, RecursionError) as error:  # ValueError covers text that is not UTF-8
            if "html" in response.headers.get("content-type", ""):
                raise UserError(
                    f"{self.url}: answers, but is not a Label Studio; mend LABEL_STUDIO_URL"
                ) from error
            raise UnavailableError("its answer is not JSON", answered=True) from error

    def _read(self, response: httpx.Response, path: str) -> bytes:
        until = time.monotonic() + LONGEST_ANSWER
        body = bytearray()
        for chunk in response.iter_bytes():
            if len(body) + len(chunk) > MOST_BYTES:
                raise AnswerError(
                    f"{self.url}/{path}: an answer of more than {MOST_BYTES >> 20} MiB is refused"
                )
            if time.monotonic() > until:
                raise AnswerError(f"{self.url}/{path}: no end of an answer after {LONGEST_ANSWER:.0f} s")
            body += chunk
        return bytes(body)

    def _refused_key(self) -> UserError:
        return UserError(
            f"{self.url}: Label Studio refuses the key; "
            "copy a valid one from its Account & Settings page to LABEL_STUDIO_API_KEY"
        )

    def _refusal(
        self, response: httpx.Response, body: bytes, path: str, headers: Mapping[str, str]
    ) -> UserError:
        status = response.status_code
        if status == 403:
            return self._refused_key()
        if status < 400:
            return UserError(
                f"{self.url}: redirects to {response.headers.get('location', '?')[:200]}; "
                "set LABEL_STUDIO_URL to the final address"
            )
        said = _said(body)
        for word in headers.get("Authorization", "").split()[1:]:  # a server may repeat the key in its words
            said = said.replace(word, "...")
        if status == 404:
            return MissingError(f"{self.url}/{path}: not there (404{said})")
        return AnswerError(f"{self.url}/{path}: Label Studio refuses it ({status}{said})")


def _said(body: bytes) -> str:
    """The server's own words, shortened to one line."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    words: Any = found
    if isinstance(found, dict):
        words = found.get("validation_errors") or found.get("detail") or found
    return ": " + " ".join(str(words)[:3000].split())[:300]


def _reason(error: httpx.TransportError | httpx.DecodingError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else 0.0
