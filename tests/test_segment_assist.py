"""Live help: the protocol on its own, and a task that opens pre-filled on a real Label Studio."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_toys import toy_workspace

from annotate.access import connect
from annotate.classes import ClassTable
from annotate.config import PushConfig
from annotate.masks import Encoding, read_mask
from annotate.paintings import read_index
from annotate.push import push
from annotate.regions import class_map
from annotate.studio import MODEL
from annotate.workspace import Workspace
from segment.assist import Helper, _handler
from segment.config import LabelConfig
from segment.label import pseudo_label
from segment.model import build, save

ABOUT: dict[str, Any] = {"architecture": "mobilenet_v3_large", "smallest_side": 0}


def trained(workspace: Workspace, seed: int = 0) -> None:
    torch.manual_seed(seed)
    save(workspace, build("mobilenet_v3_large", 6), ABOUT | {"classes": ClassTable().as_list()})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = toy_workspace(tmp_path_factory.mktemp("assist"))
    trained(made)
    return made


@pytest.fixture(scope="module")
def backend(workspace: Workspace) -> Iterator[tuple[str, int]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Helper(workspace, "cpu", "brush")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "127.0.0.1", server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(where: tuple[str, int], method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*where, timeout=60)
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def task(workspace: Workspace, key: str, number: int = 1, **data: Any) -> dict[str, Any]:
    painting = read_index(workspace)[key]
    return {"id": number, "data": {"key": key, "sha256": painting.sha256, "image": "/data/x.png", **data}}


def test_the_four_endpoints(backend: tuple[str, int]) -> None:
    assert ask(backend, "GET", "/health")[1]["status"] == "UP"
    assert ask(backend, "POST", "/setup", {"project": "1.2", "access_token": "s"}) == (
        200,
        {"model_version": MODEL},
    )
    assert ask(backend, "POST", "/webhook", {"action": "ANNOTATION_CREATED"})[0] == 200
    assert ask(backend, "POST", "/predict", {"tasks": []}) == (200, {"results": []})
    assert ask(backend, "GET", "/elsewhere")[0] == ask(backend, "POST", "/train", {})[0] == 404


def test_predictions_are_the_pseudo_masks(workspace: Workspace, backend: tuple[str, int]) -> None:
    pseudo_label(workspace, LabelConfig(), "cpu")
    keys = ["set/p3", "set/p4"]
    tasks = [task(workspace, key, n) for n, key in enumerate(keys)]
    status, found = ask(backend, "POST", "/predict", {"tasks": tasks, "project": "1.2"})
    assert status == 200
    assert [one["model_version"] for one in found["results"]] == [MODEL, MODEL]
    for key, one in zip(keys, found["results"], strict=True):
        mask = read_mask(workspace.mask("pseudo", key), Encoding.RAW)
        drawn = class_map(one["result"], (mask.shape[0], mask.shape[1]), ClassTable())
        np.testing.assert_array_equal(drawn.ids, mask)
        with Image.open(workspace.mask("confidence", key)) as image:
            assert one["score"] == pytest.approx(np.asarray(image).mean() / 255, abs=0.01)


def test_an_image_that_was_scaled_for_the_browser(workspace: Workspace, backend: tuple[str, int]) -> None:
    found = ask(backend, "POST", "/predict", {"tasks": [task(workspace, "set/p3", height=20, width=26)]})[1]
    shown = {(one["original_height"], one["original_width"]) for one in found["results"][0]["result"]}
    assert shown == {(20, 26)}


def test_strange_tasks_get_an_empty_prediction(workspace: Workspace, backend: tuple[str, int]) -> None:
    good = task(workspace, "set/p3")
    changed = {"id": 2, "data": good["data"] | {"sha256": "0"}}
    strange = [{"id": 1}, {"id": 1, "data": 3}, {"data": {"key": "../../etc/passwd"}}, changed]
    found = ask(backend, "POST", "/predict", {"tasks": [*strange, good]})[1]["results"]
    assert [bool(one["result"]) for one in found] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        ([], {}, 400),
        ({"tasks": 3}, {}, 400),
        ({"tasks": [3]}, {}, 400),
        ({"tasks": [{}] * 1001}, {}, 413),
        (b"", {"Content-Length": "99999999999"}, 413),
        (b"", {"Content-Length": "x"}, 411),
    ],
)
def test_bad_requests(backend: tuple[str, int], body: Any, headers: dict[str, str], status: int) -> None:
    assert ask(backend, "POST", "/predict", body, **headers)[0] == status
    assert ask(backend, "GET", "/health")[0] == 200


def test_a_new_training_is_taken_up(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    trained(workspace)
    helper = Helper(workspace, "cpu", "polygon")
    before = helper.predict([task(workspace, "set/p3")])
    assert helper.predict([task(workspace, "set/p3")]) == before
    trained(workspace, seed=1)
    assert helper.predict([task(workspace, "set/p3")]) != before


@pytest.mark.server
def test_a_task_opens_pre_filled(remote: Workspace) -> None:
    """The command, the real server, and what the editor asks when a person opens a task."""
    workspace = toy_workspace(remote.root)
    trained(workspace)
    push(workspace, workspace.root / "paintings", PushConfig(strategy="all"))
    command = [sys.executable, "-m", "cli", "segment", "assist", "--json", "-w", str(workspace.root)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    studio = connect(workspace)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line, running.communicate()[1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", json.loads(line)["backend"]), line
        project = studio.project(workspace)
        (registered,) = studio.connection.get("api/ml/", {"project": project})
        assert (registered["title"], registered["readable_state"]) == (MODEL, "Connected")
        one = next(iter(studio.tasks(project)))
        assert not one.predictions
        opened = studio.connection.get(f"api/tasks/{one.id}/")
        (prediction,) = opened["predictions"]
        assert prediction["model_version"] == MODEL
        size = read_index(workspace)[one.key].size
        assert class_map(prediction["result"], size, ClassTable()).ids.shape == size
        assert {region["type"] for region in prediction["result"]} == {"brush", "labels"}
        assert len(studio.connection.get(f"api/tasks/{one.id}/")["predictions"]) == 1  # not twice
    finally:
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert os.environ["LABEL_STUDIO_API_KEY"] not in errors
    assert studio.connection.get("api/ml/", {"project": project}) == []
    kept = studio.connection.get(f"api/projects/{project}/")
    assert (kept["model_version"], kept["show_collab_predictions"]) == (MODEL, True)
    studio.close()
