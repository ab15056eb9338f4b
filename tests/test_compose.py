"""`tool generate compose`: from masks to compositions on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from annotate.masks import Encoding, mask_texts, read_mask, shift, write_mask
from annotate.workspace import Workspace
from cli import main
from demo.scene import SKY, TREES, compose
from generate.compose import MADE_OF, read_composition, write_composition

Ids = NDArray[np.uint8]


def scene(seed: int, size: tuple[int, int] = (60, 80)) -> Ids:
    return compose(np.random.default_rng([seed, 8191]), size).ids


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    for seed in range(5):
        write_mask(made.mask("shifted", f"sub/{seed}"), shift(scene(seed)), Encoding.SHIFTED)
    return made


def run(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(main, ["generate", "compose", words[0], "-w", str(workspace.root), *words[1:]])


def made(workspace: Workspace, *words: str) -> tuple[dict[str, Any], Ids]:
    """The command's answer and the raw ids that it wrote."""
    result = run(workspace, *words, "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    return value, read_mask(workspace.composition(value["name"]), Encoding.RAW)


def test_original_slightly_enlarged(workspace: Workspace) -> None:
    value, ids = made(workspace, "original", "sub/0", "--margin", "8")
    assert value["name"] == "0-original"
    assert ids.shape == (76, 96)
    assert np.array_equal(ids[8:-8, 8:-8], scene(0))
    assert value["nearest"] == "sub/0"
    assert value["departures"] == []
    assert mask_texts(Path(value["path"]))[MADE_OF] == "sub/0, its canvas enlarged by 8 pixels on every side"


def test_enlarged_canvas(workspace: Workspace) -> None:
    value, ids = made(workspace, "enlarge", "sub/1", "--size", "90x200", "--anchor", "bottom-left")
    assert value["size"] == [90, 200]
    assert np.array_equal(ids[30:, :80], scene(1))
    assert np.array_equal(ids[30:, 80:160], scene(1)[:, ::-1])
    _, ids = made(workspace, "enlarge", "sub/1", "--by", "1.5", "--fill", "free", "--name", "wide")
    assert ids.shape == (90, 120)
    assert (ids == 255).sum() == 90 * 120 - 60 * 80


def test_mix_and_free_build_on_compositions(workspace: Workspace) -> None:
    value, ids = made(workspace, "mix", "sub/0", "sub/1", "--share", "0.6", "--name", "two")
    assert ids.shape[1] == 96
    assert value["made_of"] == "the left of sub/0, the right of sub/1"
    value, opened = made(workspace, "free", "two", "trees", "0,0,25%,100%", "--name", "dream")
    quarter = round(0.25 * len(ids))
    assert (opened[:quarter] == 255).all()
    assert not (opened == TREES).any()
    kept = ids != TREES
    kept[:quarter] = False
    assert np.array_equal(opened[kept], ids[kept])
    assert value["shares"]["unlabelled"] > 0.25
    name, shifted = read_composition(workspace, "dream")
    assert name == "dream"
    assert np.array_equal(shifted, shift(opened))
    assert made(workspace, "mix", "sub/0", "sub/1", "--direction", "above")[0]["name"] == "0-above-1"


def test_a_picture_is_a_region(workspace: Workspace, tmp_path: Path) -> None:
    region = np.zeros((60, 80), np.uint8)
    region[10:20, 30:50] = 255
    Image.fromarray(region).save(tmp_path / "there.png")
    _, ids = made(workspace, "free", "sub/0", str(tmp_path / "there.png"))
    assert ((ids == 255) == (region > 0)).all()


def test_what_departs_is_said_and_nothing_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    upset = scene(0)[::-1].copy()
    write_mask(tmp_path / "upset.png", upset, Encoding.RAW)
    result = run(workspace, "original", str(tmp_path / "upset.png"))
    assert result.exit_code == 0
    assert "composition: " in result.stderr
    assert "in your paintings" in result.stderr
    quiet = run(workspace, "original", str(tmp_path / "upset.png"), "--no-check")
    assert quiet.exit_code == 0
    assert "composition" not in quiet.stderr


def test_bad_input_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 5), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(scene(0)).save(tmp_path / "foreign.png")
    assert not (scene(0) == 255).any()
    for words, line in (
        (("original", "nobody"), "neither a PNG, nor a composition, nor a key"),
        (("original", "../x"), "neither a PNG, nor a composition, nor a key"),
        (("original", "../x.png"), "../x.png: no such file, and no composition of that name"),
        (("original", "x" * 300 + ".png"), "no such file"),
        (
            ("original", "sub/0", "--name", "../x"),
            "'../x': would lie outside compositions/; choose another --name",
        ),
        (("original", str(tmp_path / "text.png")), "not a readable PNG; put a sound one there"),
        (("original", str(tmp_path / "foreign.png")), "add --encoding raw or shifted"),
        (("free", "sub/0", "sky", "0,0,0,9"), "0,0,0,9: the composition has no such part"),
        (("enlarge", "sub/0", "--size", "wide"), "--size wide: give height and width"),
        (("enlarge", "sub/0", "--size", "99999x99999"), "more than 100 megapixels"),
        (("free", "sub/0", "clouds"), "'clouds': no region; give a class (road, water"),
        (("free", "sub/0", "unlabelled"), "the composition has no such part"),
        (("free", "sub/0", "90,0,99,10"), "the composition has no such part"),
        (("free", "sub/0", str(tmp_path / "small.png")), "4 x 5 (H x W), the composition has 60 x 80"),
        (("free", "sub/0", str(tmp_path / "text.png")), "not a readable PNG"),
        (("free", "sub/0", str(tmp_path / "none.png")), "no such file"),
        (("free", "sub/0", "sky", "--name", "sub/1"), "is the key of a painting"),
    ):
        result = run(workspace, *words)
        assert result.exit_code == 1, words
        assert line in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert run(workspace, "enlarge", "sub/0", "--anchor", "middle").exit_code == 2
    assert "give one of them" in run(workspace, "enlarge", "sub/0", "--size", "9x9", "--by", "2").stderr
    assert not workspace.compositions.exists()


def test_a_foreign_mask_is_composed(workspace: Workspace, tmp_path: Path) -> None:
    Image.fromarray(scene(0)).save(tmp_path / "foreign.png")
    foreign = (str(tmp_path / "foreign.png"), "--encoding", "raw", "--margin", "0", "--name", "mine")
    assert np.array_equal(made(workspace, "original", *foreign)[1], scene(0))


def test_what_takes_a_place_is_said_and_hand_work_stays(workspace: Workspace) -> None:
    made(workspace, "original", "sub/0", "--name", "dusk")
    result = run(workspace, "enlarge", "sub/0", "--size", "70 x 90", "--name", "dusk")
    assert result.exit_code == 0
    assert (
        "dusk: takes the place of an earlier composition (sub/0, its canvas enlarged by 16" in result.stderr
    )
    write_composition(workspace, "dusk", scene(1), "dusk, repainted by hand", False, by_hand=True)
    result = run(workspace, "enlarge", "sub/0", "--name", "dusk")
    assert result.exit_code == 1
    assert "dusk: was repainted by hand, and would be lost; give this one another --name" in result.stderr
    assert np.array_equal(read_mask(workspace.composition("dusk"), Encoding.RAW), scene(1))


@pytest.mark.server
def test_a_mask_is_repainted_by_hand(remote: Workspace) -> None:
    """Round trip through a real Label Studio: what was pushed comes back, and so does what a person changes."""
    from annotate.access import connect
    from annotate.regions import class_map_regions

    write_mask(remote.mask("shifted", "sub/0"), shift(scene(0)), Encoding.SHIFTED)
    first = run(remote, "edit", "sub/0", "--name", "dusk", "--json")
    assert first.exit_code == 0, first.output
    task = json.loads(first.stdout)
    assert task["sent"]
    assert task["url"].endswith(f"data?task={task['task']}")
    again = json.loads(run(remote, "edit", "sub/0", "--name", "dusk", "--json").stdout)
    assert (again["task"], again["sent"]) == (task["task"], False)
    refused = run(remote, "edit", "dusk", "--name", "sub/0")
    assert "sub/0: is the key of a painting" in refused.stderr
    write_mask(remote.mask("shifted", "sub/1"), shift(scene(1, (40, 50))), Encoding.SHIFTED)
    refused = run(remote, "edit", "sub/1", "--name", "dusk")  # which does not touch what lies there
    assert "dusk: lies in Label Studio already" in refused.stderr
    assert np.array_equal(read_mask(remote.composition("dusk"), Encoding.RAW), scene(0))
    remote.composition("dusk").unlink()  # nor is it needed
    value, ids = made(remote, "edit", "dusk", "--pull")
    assert np.array_equal(ids, scene(0))
    assert value["made_of"] == "dusk, repainted by hand"

    changed = scene(0).copy()
    changed[:20, :30] = SKY
    changed[40:, :10] = 255  # erased: left to imagination
    studio = connect(remote)
    try:
        studio.annotate(task["task"], class_map_regions(changed, remote.settings().classes))
    finally:
        studio.close()
    assert np.array_equal(made(remote, "edit", "dusk", "--pull")[1], changed)
    assert remote.settings().studio_project is None  # the paintings' own project is another
    for words, line in (
        (("edit", "nothing", "--pull"), "nothing-edited: is not in Label Studio; send it with"),
        (("edit", "sub/0", "--name", "dusk"), ""),
    ):
        result = run(remote, *words)
        assert line in result.stderr
    assert np.array_equal(read_mask(remote.composition("dusk"), Encoding.RAW), changed)  # hand work stays
    write_mask(remote.mask("shifted", "sub/1"), shift(scene(1)), Encoding.SHIFTED)
    other = run(remote, "edit", "sub/1", "--name", "dusk")
    assert other.exit_code == 1
    assert "lies in Label Studio already" in other.stderr
