"""Find the Label Studio to work with, and come in by a key of either kind. The only importer of its SDK.

The SDK turns either kind of key (legacy token, personal access token) into request headers, and renews tokens
in time. Its resource clients are left out: importing them takes 2.5 s or more (pandas, boto3, faker), they
have no call to upload files, and they build Pydantic models of every number of a brush stroke.
Source: label_studio_sdk.core.client_wrapper, label_studio_sdk.tokens.client_ext; Label Studio 1.23's API.
"""

from __future__ import annotations

import functools
import os
from urllib.parse import urlsplit

import httpx

from annotate import server
from annotate.connection import Connection, MissingError, UnavailableError, limit
from annotate.errors import UserError
from annotate.studio import Studio
from annotate.workspace import Workspace

ANSWER_SECONDS = 60.0  # without a byte from the server


def connect(workspace: Workspace, url: str | None = None) -> Studio:
    """The server that `url`, LABEL_STUDIO_URL or `tool.toml` names; else the embedded one, started if need be.

    Raises:
        UserError: no key for it, it refuses the key, or it does not answer.
    """
    chosen = url or os.environ.get("LABEL_STUDIO_URL") or workspace.settings().studio_url
    if not chosen or chosen == "embedded":
        own = server.start(workspace)
        login = server.login(workspace)
        return _connect(own.url, login.key, login)
    key = os.environ.get("LABEL_STUDIO_API_KEY", "").strip()
    if not key:
        raise UserError(
            f"{chosen}: needs a key; copy it from Label Studio's Account & Settings page to LABEL_STUDIO_API_KEY"
        )
    return _connect(chosen.rstrip("/"), key, None)


def embedded_or_configured(workspace: Workspace) -> Studio | None:
    """As `connect`, but an embedded server that does not run is not started: None."""
    named = os.environ.get("LABEL_STUDIO_URL") or workspace.settings().studio_url
    if not named and server.running(workspace) is None:
        return None
    return connect(workspace)


def _connect(url: str, key: str, login: server.Login | None) -> Studio:
    try:
        address = urlsplit(url)
        usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if usable and "@" in address.netloc:
        raise UserError("the server's address holds a login; leave it out, and use LABEL_STUDIO_API_KEY")
    if not usable:
        raise UserError(f"{url!r} is not the address of a server; write it like http://localhost:8080")
    if not key.isascii() or any(c.isspace() for c in key):
        raise UserError(
            "LABEL_STUDIO_API_KEY: not a key (it has spaces or other strange characters); copy it again"
        )
    client = httpx.Client(
        timeout=httpx.Timeout(ANSWER_SECONDS, connect=10),
        headers={"Accept-Encoding": "gzip"},  # what can be unpacked a piece at a time
        trust_env=login is None,  # no proxy between us and our own server
        event_hooks={"response": [limit]},  # also for the SDK's own requests, which read whatever comes
    )
    access = _Key(url, key, client)
    studio = Studio(Connection(url, access.headers, client, access.renew), login)
    try:
        who = studio.connection.get("api/current-user/whoami", patient=False)
        if not isinstance(who, dict) or "email" not in who:
            raise UserError(f"{url}: answers, but is not a Label Studio; mend LABEL_STUDIO_URL")
    except MissingError as error:
        raise UserError(f"{url}: answers, but is not a Label Studio; mend LABEL_STUDIO_URL") from error
    return studio


class _Key:
    """An API key of either kind, as request headers. Its text appears in no error."""

    def __init__(self, url: str, key: str, client: httpx.Client) -> None:
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.client_wrapper import SyncClientWrapper

        self._url = url
        self._api_error = ApiError
        self._make = functools.partial(
            SyncClientWrapper, api_key=key, base_url=f"{url}/", httpx_client=client
        )
        self._lasts = key.count(".") != 2  # a legacy token, no JWT: there is nothing to renew
        try:
            self._wrapper = self._make()
        except ApiError:
            raise self._refused() from None

    def headers(self) -> dict[str, str]:
        """Headers of one request; an access token that ran out is renewed first."""
        try:
            found: dict[str, str] = self._wrapper.get_headers()
        except self._api_error as error:
            if error.status_code is not None and error.status_code < 500 and error.status_code != 429:
                raise self._refused() from None
            raise UnavailableError(f"it answers {error.status_code}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise UnavailableError(" ".join(str(error).split())[:200] or type(error).__name__) from None
        except (ValueError, AttributeError):  # its text may hold a token
            raise UnavailableError("its answer about the key is not understood") from None
        return found

    def renew(self) -> bool:
        """Forget an access token that the server refuses before its time, as one whose clock is ahead does."""
        if not self._lasts:
            try:
                self._wrapper = self._make()
            except self._api_error:
                raise self._refused() from None
        return not self._lasts

    def _refused(self) -> UserError:
        return UserError(
            f"{self._url}: Label Studio refuses the key; it may have expired: "
            "copy a new one from the Account & Settings page to LABEL_STUDIO_API_KEY"
        )
