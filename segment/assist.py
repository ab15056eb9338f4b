"""Live help: the current model as an ML backend of Label Studio, so that a task opens pre-filled.

Label Studio asks `/predict` when a person opens a task that has no pre-annotation yet. The painting is read from
the workspace, by the task's key: nothing is downloaded. `/setup` carries a key of the server, which is neither
needed nor kept; `/webhook` tells of submitted annotations, which the next `annotate pull` fetches anyway.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.access import connect
from annotate.errors import UserError
from annotate.interface import as_drawn
from annotate.paintings import load_painting, read_index
from annotate.predictions import SMALLEST
from annotate.progress import note
from annotate.regions import class_map_regions
from annotate.studio import MODEL
from annotate.workspace import Workspace
from segment.config import AssistConfig, LabelConfig
from segment.device import choose_device
from segment.model import Segmenter, load, weights_digest
from segment.predict import predict_map

MOST_BYTES = 16 * 2**20  # of a request: its tasks, never an image
MOST_TASKS = 1000  # of a request


class Helper:
    """Regions of a painting by the model that lies in the workspace; a new training is taken up by itself."""

    def __init__(self, workspace: Workspace, device: str, form: Literal["brush", "polygon"]) -> None:
        self.workspace, self.form = workspace, form
        self._device = choose_device(device)
        self._segmenter: Segmenter = load(workspace, self._device)
        self._lock = threading.Lock()  # one painting at a time: the network takes all cores

    def predict(self, tasks: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One prediction a task, in order; an empty one of a task that is not ours, or whose painting is gone."""
        with self._lock:
            if weights_digest(self.workspace) != self._segmenter.digest:
                self._segmenter = load(self.workspace, self._device)
            return [self._one(task) for task in tasks]

    def _one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        data = task.get("data")
        data = data if isinstance(data, dict) else {}
        painting = read_index(self.workspace).get(str(data.get("key")))
        if painting is None or painting.sha256 != data.get("sha256"):
            note(f"task {task.get('id')}: no painting of this workspace; push again")
            return _answer([], 0.0)
        try:
            pixels = load_painting(painting.file(self.workspace))
        except UserError as error:
            note(f"task {task.get('id')}: {error.message}")
            return _answer([], 0.0)
        said, confidence = predict_map(self._segmenter, pixels, LabelConfig())
        ids = _scaled(self._segmenter.classes.to_raw(said), data)
        regions = class_map_regions(ids, self._segmenter.classes, self.form, smallest=SMALLEST)
        return _answer(as_drawn(regions), float(confidence.mean()))


def serve(workspace: Workspace, config: AssistConfig, device: str, ready: Callable[[str, str], None]) -> None:
    """Answer Label Studio until the process is told to stop (Ctrl-C, or SIGTERM); then say goodbye to it.

    Args:
        ready: called with the backend's address and Label Studio's, once tasks open pre-filled.

    Raises:
        UserError: no model, the port is taken, or Label Studio refuses the backend.
    """
    helper = Helper(workspace, device, cast(Literal["brush", "polygon"], config.regions))
    try:
        server = ThreadingHTTPServer((config.host, config.port), _handler(helper))
    except OSError as error:
        raise UserError(
            f"{config.host}:{config.port}: cannot listen there ({error.strerror}); give another --port or --host"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = config.address or f"http://{config.host}:{server.server_address[1]}"
    studio = connect(workspace, config.url)
    try:
        project = studio.project(workspace)
        backend = studio.add_backend(project, address)
        try:
            ready(address, studio.url)
            threading.Event().wait()
        finally:
            studio.remove_backend(project, backend)
    finally:
        studio.close()
        server.shutdown()
        server.server_close()


def _handler(helper: Helper) -> type[BaseHTTPRequestHandler]:
    """The four endpoints, and `/versions`."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds for a request to arrive

        def do_GET(self) -> None:
            if self.path in ("/", "/health"):
                self._send({"status": "UP", "model_class": MODEL})
            elif self.path.split("?")[0] == "/versions":
                self._send({"versions": [MODEL]})
            else:
                self._send({"error": "no such place"}, 404)

        def do_POST(self) -> None:
            if self.path not in ("/setup", "/predict", "/webhook"):
                self._send({"error": "no such place"}, 404)
                return
            body = self._body()
            if self.path == "/setup" and body is not None:
                self._send({"model_version": MODEL})
            elif self.path == "/webhook" and body is not None:
                self._send({"status": "nothing to do"})
            elif self.path == "/predict" and body is not None:
                self._predict(body)

        def _predict(self, body: Mapping[str, Any]) -> None:
            tasks = body.get("tasks")
            if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
                self._send({"error": "tasks: a list of tasks is needed"}, 400)
            elif len(tasks) > MOST_TASKS:
                self._send({"error": f"{len(tasks)} tasks; {MOST_TASKS} are the most"}, 413)
            else:
                try:
                    self._send({"results": helper.predict(tasks)})
                except UserError as error:
                    note(error.message)
                    self._send({"error": error.message}, 500)

        def _body(self) -> Mapping[str, Any] | None:
            """The request's JSON object; None after an error was sent."""
            try:
                length = int(self.headers.get("Content-Length", ""))
            except ValueError:
                self._send({"error": "Content-Length is needed"}, 411)
                return None
            if not 0 <= length <= MOST_BYTES:
                self._send({"error": f"{length} bytes; {MOST_BYTES} are the most"}, 413)
                return None
            try:
                found = json.loads(self.rfile.read(length))
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                return found
            self._send({"error": "a JSON object is needed"}, 400)
            return None

        def _send(self, value: Mapping[str, Any], status: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status >= 400:
                self.close_connection = True  # a body may be left unread
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: Label Studio asks for its health every few seconds."""

    return Handler


def _answer(regions: list[dict[str, Any]], score: float) -> dict[str, Any]:
    return {"result": regions, "score": score, "model_version": MODEL}


def _scaled(ids: NDArray[np.uint8], data: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The mask at the size of the image that the browser shows, which may be smaller than the painting."""
    height, width = data.get("height"), data.get("width")
    if type(height) is not int or type(width) is not int or (height, width) == ids.shape:
        return ids
    if not (0 < height <= ids.shape[0] and 0 < width <= ids.shape[1]):
        return ids
    return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))
