"""What a person does in the browser before all else: log in at the embedded server, and make a token there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from annotate import server
from annotate.workspace import Workspace


@contextmanager
def signed_in(embedded: Workspace) -> Iterator[httpx.Client]:
    """A client with the annotator's login."""
    running, login = server.running(embedded), server.login(embedded)
    assert running is not None
    with httpx.Client(base_url=running.url, headers={"Referer": running.url}) as client:
        csrf = client.get("/user/login/").cookies["csrftoken"]
        form = {"email": login.email, "password": login.password, "csrfmiddlewaretoken": csrf}
        assert client.post("/user/login/", data=form).status_code == 302
        yield client


def personal_access_token(embedded: Workspace) -> str:
    """A new token of the annotator's."""
    with signed_in(embedded) as client:
        made = client.post("/api/token/", headers={"X-CSRFToken": client.cookies["csrftoken"]})
    assert made.status_code == 201, made.text
    return str(made.json()["token"])
