"""A server that means harm: refused with the task's id, nothing written elsewhere, memory and time bounded."""

from __future__ import annotations

import gzip
import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hostile import Pieces, speaking, task
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate import connection, studio
from annotate.access import connect
from annotate.brush import encode
from annotate.classes import UNLABELLED, ClassTable
from annotate.connection import AnswerError, Connection
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask
from annotate.paintings import Painting, write_index
from annotate.regions import class_map, class_map_regions
from annotate.studio import Studio
from annotate.tasks import Upload
from annotate.workspace import Workspace
from bench.timing import run_tool

CLASSES = ClassTable()
SIZE = (40, 60)
GIB = 2**30
COMMON = {"to_name": "image", "original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}


def region(kind: str, value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    shape = kind.removesuffix("labels")
    about = {"id": "r", "from_name": shape, "type": kind, "value": {**value, kind: ["sky"]}}
    return {**COMMON, **about, **changes}


def claim(values: int) -> list[int]:
    """An RLE header that claims so many values."""
    return list(((((values << 5 | 7) << 16) | 2 << 12 | 3 << 8 | 7 << 4 | 15) << 3).to_bytes(7, "big"))


def answer(result: Any) -> bytes:
    return json.dumps({"id": 1, "result": result}).encode()


def prepared(root: Path, url: str, keys: list[str]) -> Workspace:
    """A workspace that has pushed some paintings there."""
    workspace = Workspace(root)
    workspace.save_settings(studio_url=url, studio_project=1)
    write_index(workspace, [Painting(key, f"{key}.png", SIZE, "0" * 64, "hand") for key in keys])
    return workspace


def truth() -> np.ndarray[Any, np.dtype[np.uint8]]:
    ids = np.full(SIZE, UNLABELLED, np.uint8)
    ids[10:30, 20:50] = CLASSES.ids[0]
    return ids


GOOD = answer(class_map_regions(truth(), CLASSES))
POINTS = b"[1,1]," * 10_000_000
NAN = answer([region("polygonlabels", {"points": [[10, 10], [math.nan, 20], [30, math.inf]]})])
ATTACKS: dict[str, tuple[Any, str]] = {
    "RLE of 4 billion values": (
        answer([region("brushlabels", {"format": "rle", "rle": claim(2**32 - 1)})]),
        "claims 4294967295 values, but 40 x 60 RGBA has 9600",
    ),
    "RLE of another size": (
        answer([region("brushlabels", {"format": "rle", "rle": encode(np.ones((7, 5), np.bool_))})]),
        "claims 140 values",
    ),
    "an image of another size": (
        answer([region("brushlabels", {"format": "rle", "rle": [0] * 9}, original_width=10**5)]),
        "drawn on an image of 40 x 100000",
    ),
    "sides of 4000 digits": (
        answer([region("rectanglelabels", {"x": 1}, original_width=10**4000, original_height=10**4000)]),
        "original size 1000",
    ),
    "10 million points": (
        b'{"result": [{"id": "p", "type": "polygonlabels", "value": {"points": [' + POINTS + b"[1,1]]}}]}",
        "an answer of 10000006 parts is refused",
    ),
    "200,000 points": (
        answer([region("polygonlabels", {"points": [[1, 1]] * 200_000})]),
        "a polygon of 200000 points; 100000 are the most",
    ),
    "NaN": (NAN, "not a place on the image"),
    "a million regions": (
        answer([{}] * 900_000),
        "900000 regions; 5000 are the most",
    ),
    "the image a thousand times": (
        answer([region("ellipselabels", {"x": 50, "y": 50, "radiusX": 200, "radiusY": 200})] * 2000),
        "cover the image 500 times",
    ),
    "not UTF-8": (b'{"result": "\xff\xfe\xc3\x28"}', "its answer is not JSON"),
    "a list": (b"[]", "a list where an object was expected"),
    "1 GiB": (Pieces(b" " * 2**20, 1024), "an answer of more than 64 MiB is refused"),
    "1 GiB, packed": (
        Pieces(gzip.compress(b"[" + b" " * GIB, 1), 1, {"Content-Encoding": "gzip"}),
        "an answer of more than 64 MiB is refused",
    ),
    "packed twice": (
        Pieces(b"x", 10, {"Content-Encoding": "gzip, gzip"}),
        "packed as 'gzip, gzip' is refused",
    ),
    "nothing": (None, "was deleted just now; pull again"),
    "deep": (b'{"result": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "its answer is not JSON"),
}


def test_every_attack_is_named_and_the_rest_is_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command in a process of its own, whose memory the system measures."""
    names = list(ATTACKS)
    rows, answers = [], {}
    for number, name in enumerate(names, 1):
        rows.append(task(number, name, 1000 + number))
        answers[f"/api/annotations/{1000 + number}/"] = ATTACKS[name][0]
    good = ["first", *(f"good {n}" for n in range(4)), "last"]
    for number, key in enumerate(good, 501):
        rows.insert((number - 501) * 4, task(number, key, 1000 + number))
        answers[f"/api/annotations/{1000 + number}/"] = GOOD
    outside = str(tmp_path / "outside")
    strange: tuple[Any, ...] = ("../../etc/x", outside, "a/../../b", "", "a\0b", {"a": 1}, 7)
    rows += [task(number, key, 1501) for number, key in enumerate(strange, 601)]
    damaged = [
        task(701, "first", annotations=None),
        task(702, "x", drafts=7),
        task(703, "last", annotations=[{"id": "seven", "updated_at": 1}]),
        {"id": 704},
        task(True, "x"),
    ]
    with speaking(answers | {"/api/tasks/": rows + damaged}) as url:
        workspace = prepared(tmp_path / "workspace", url, [*names, *good])
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
        run = run_tool("annotate", "pull", "-w", str(workspace.root), expect=1)
    said = run.err
    assert "Traceback" not in said
    for number, name in enumerate(names, 1):
        line = next((line for line in said.splitlines() if f"{name} (task {number}, annotation" in line), "")
        assert ATTACKS[name][1] in line, f"{name}: {line or said}"
        assert len(line) < 500
    assert all(f"task {number}: " in said for number in (601, 602, 603, 701, 702, 703, 704))
    assert workspace.keys_with_mask("hand") == sorted(good)
    for key in good:
        assert np.array_equal(read_mask(workspace.mask("hand", key), Encoding.RAW), truth())
    assert not list(tmp_path.rglob("*outside*")) + list(tmp_path.rglob("x.png"))
    assert run.megabytes < 700  # three answers of 64 MiB at once, and the program
    assert run.seconds < 120


@pytest.mark.parametrize(
    ("path", "found", "line"),
    [
        ("/api/tasks/", {"tasks": [], "total": "many"}, "total is 'many', not a whole number"),
        ("/api/tasks/", {"tasks": {}, "total": 1}, "tasks is an object, not a list"),
        ("/api/tasks/", {"tasks": [1], "total": 1}, "a number where an object was expected"),
        ("/api/tasks/", [[]], "a list where an object was expected"),
        ("/api/tasks/", Pieces(b" " * 2**20, 1024), "more than 64 MiB is refused"),
        ("/api/projects/1/", Pieces(b"[" * 2**20, 2), "parts is refused"),
    ],
)
def test_a_listing_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, found: Any, line: str
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    with speaking({path: found}) as url:
        workspace = prepared(tmp_path, url, ["a"])
        there = connect(workspace)
        with pytest.raises(AnswerError, match=line) as caught:
            list(there.tasks(there.project(workspace)))
        there.close()
    assert "\n" not in caught.value.message


def test_a_listing_without_end_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    monkeypatch.setattr(studio, "MOST_TASKS", 5000)
    endless = json.dumps({"tasks": [task(n, f"{n}") for n in range(500)], "total": 10**12}).encode()
    with speaking({"/api/tasks/": endless}) as url:
        there = connect(prepared(tmp_path, url, ["a"]))
        with pytest.raises(AnswerError, match="more than 5000 tasks"):
            list(there.tasks(1))
        there.close()


def test_an_answer_that_drips_for_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LONGEST_ANSWER", 0.1)

    class Drip(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            while True:
                time.sleep(0.02)
                yield b" "

    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, stream=Drip())))
    with pytest.raises(AnswerError, match="no end of an answer"):
        Connection("http://studio", dict, client).get("api/x")


def test_a_token_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The SDK asks for an access token itself, and reads what comes."""
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    claims = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCIsImV4cCI6NDAwMDAwMDAwMH0.c2ln"
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", claims)
    sent: list[int] = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            for _ in range(1024):
                sent.append(1)
                yield b" " * 2**16

    def endless(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", endless)
    with pytest.raises(UserError, match="a token without end"):
        connect(prepared(tmp_path, "http://127.0.0.1:9", ["a"]))
    assert len(sent) <= 2 * connection.TRIES


FIELDS = [
    "id",
    "data",
    "key",
    "annotations",
    "drafts",
    "predictions",
    "updated_at",
    "total",
    "tasks",
    "result",
    "results",
    "count",
]
FIELDS += ["description", "file", "file_upload_ids", "task_count", "created", "label_config"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JUNK)
def test_whatever_is_answered_is_understood_or_one_line(found: Any) -> None:
    body = json.dumps(found).encode()
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=body)))
    there = Studio(Connection("http://studio", dict, client), None)
    upload = Upload("a", "0" * 64, b"x", ".png", (1, 1))
    for call in (
        lambda: list(there.tasks(1)),
        lambda: there.result(1),
        lambda: there.add(1, [upload]),
        lambda: there.annotate(1, []),
        lambda: there.predict(1, []),
        lambda: there.show_predictions(1),
    ):
        try:
            call()
        except UserError as error:
            said = error.message
        else:
            continue
        assert "\n" not in said
        assert len(said) < 300


NUMBERS = (
    st.floats(-50, 150)
    | st.floats()
    | st.integers(-(10**40), 10**40)
    | st.sampled_from([1e308, -1e308, 5e-324, 1e-7, 9999.999, 10_000])
)
SHAPES = st.one_of(
    st.fixed_dictionaries({"points": st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40)}).map(
        lambda value: region("polygonlabels", value)
    ),
    st.fixed_dictionaries(
        dict.fromkeys(("x", "y", "width", "height"), NUMBERS), optional={"rotation": NUMBERS}
    ).map(lambda value: region("rectanglelabels", value)),
    st.fixed_dictionaries(
        dict.fromkeys(("x", "y", "radiusX", "radiusY"), NUMBERS), optional={"rotation": NUMBERS}
    ).map(lambda value: region("ellipselabels", value)),
    st.lists(st.integers(0, 255), max_size=200).map(
        lambda rle: region("brushlabels", {"format": "rle", "rle": claim(SIZE[0] * SIZE[1] * 4)[:6] + rle})
    ),
)
SIDES = st.sampled_from([*SIZE, 2 * SIZE[0], 2 * SIZE[1], 1, 0, -1, 10**5, 10**400]) | NUMBERS


@settings(max_examples=300, deadline=2000)
@given(st.lists(SHAPES, max_size=4), st.none() | st.tuples(SIDES, SIDES))
def test_no_number_makes_the_rasteriser_crash_hang_or_swell(
    regions: list[dict[str, Any]], drawn_on: tuple[Any, Any] | None
) -> None:
    if drawn_on:
        regions = [{**one, "original_height": drawn_on[0], "original_width": drawn_on[1]} for one in regions]
    tracemalloc.start()
    try:
        ids = class_map(regions, SIZE, CLASSES).ids
        assert ids.shape == SIZE
        assert set(np.unique(ids).tolist()) <= {CLASSES.by_name["sky"].id, UNLABELLED}
        said = ""
    except ValueError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in said
    assert len(said) < 300
    assert peak < 100 * SIZE[0] * SIZE[1] + 2_000_000
