"""Conversion to shifted masks: who wins, what is written again, the lists, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from segment_toys import index, toy, toy_workspace

from annotate.errors import UserError
from annotate.masks import Encoding, mask_texts, read_mask, unshift, write_mask
from annotate.paintings import load_painting, read_index
from annotate.workspace import Workspace
from segment.config import ConvertConfig
from segment.convert import convert, held_out_share

DEFAULT = ConvertConfig()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Five paintings: p0 to p2 by hand, p2 and p3 by the model, p4 without a mask."""
    made = toy_workspace(tmp_path)
    for number in (2, 3):
        write_mask(
            made.mask("pseudo", f"set/p{number}"), np.full((40 + number, 56), 156, np.uint8), Encoding.RAW
        )
    return made


def test_hand_masks_win_and_the_shift_is_undone_exactly(workspace: Workspace) -> None:
    result = convert(workspace, DEFAULT)
    assert (result.written, result.hand, result.pseudo, result.without) == (4, 3, 1, 1)
    for number, source in enumerate(["hand", "hand", "hand", "pseudo"]):
        path = workspace.mask("shifted", f"set/p{number}")
        raw = read_mask(workspace.mask(source, f"set/p{number}"), Encoding.RAW)
        assert (unshift(read_mask(path, Encoding.SHIFTED)) == raw).all()
        assert mask_texts(path)["source"] == source
    with Image.open(workspace.mask("shifted", "set/p0")) as image:
        assert image.mode == "L"
        assert np.asarray(image)[0, 0] == 0  # unlabelled


def test_lists_and_manifest(workspace: Workspace) -> None:
    convert(workspace, ConvertConfig(held_out=0.25))
    folder = workspace.masks("shifted")
    train = (folder / "train.txt").read_text().splitlines()
    val = (folder / "val.txt").read_text().splitlines()
    assert sorted(train + val) == [f"set/p{n}.png" for n in range(4)]
    assert len(val) == 1
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["n_labels"], manifest["shift_segmentation"]) == (182, False)
    assert manifest["encoding"] == "coco-stuff-shifted"
    assert manifest["classes"][0] == {
        "name": "road",
        "id": 148,
        "color": "#b0703c",
        "order": 2,
        "shifted": 149,
    }
    assert manifest["masks"]["set/p3"]["source"] == "pseudo"
    assert manifest["masks"]["set/p3"]["size"] == [43, 56]
    assert {key for key, one in manifest["masks"].items() if one["list"] == "val"} == {val[0][:-4]}


def test_the_generator_reads_the_list(workspace: Workspace) -> None:
    from generate.data import held_out_keys, load_masks

    convert(workspace, ConvertConfig(held_out=0.5))
    assert len(held_out_keys(workspace)) == 2
    assert held_out_keys(workspace) <= set(workspace.keys_with_mask("shifted"))
    assert len(load_masks(workspace, 0, 16, 182)) == 4


def test_taming_transformers_finds_painting_and_mask(workspace: Workspace) -> None:
    """The rule of its loader: a line names the painting, and `.jpg` replaced by `.png` in it the mask."""
    convert(workspace, DEFAULT)
    for line in (workspace.masks("shifted") / "train.txt").read_text().splitlines():
        assert (workspace.root / "paintings" / line).exists()
        assert (workspace.masks("shifted") / line.replace(".jpg", ".png")).exists()


def as_segmentation_base(
    csv: Path, root: Path, masks: Path
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The paintings and masks that SegmentationBase of taming-transformers reads, by its rules of 2021."""
    found = []
    for line in csv.read_text().splitlines():
        with Image.open(root / line) as image, Image.open(masks / line.replace(".jpg", ".png")) as mask:
            assert mask.mode == "L"
            found.append((np.asarray(image.convert("RGB")), np.array(mask).astype(np.uint8)))
    return found


def test_the_layout_of_taming_transformers(workspace: Workspace) -> None:
    """JPEG, PNG and TIFF, a turned painting, and a name with `.jpg` within: each with its own mask, once shifted."""
    folder = workspace.root / "paintings" / "set"
    painting, raw = toy(0, (40, 56))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(painting).save(folder / "a.jpg-old.jpg", quality=95)
    Image.fromarray(painting).save(folder / "b.JPEG", quality=95)
    Image.fromarray(painting).save(folder / "c.tif")
    Image.fromarray(np.rot90(painting)).save(folder / "d.jpg", exif=turned, quality=95)
    Image.fromarray(painting).save(folder / "e.webp", lossless=True)
    index(workspace)
    for name in ("a.jpg-old", "b", "c", "d", "e"):
        write_mask(workspace.mask("hand", f"set/{name}"), raw, Encoding.RAW)
    convert(workspace, ConvertConfig(layout="taming", held_out=0.3))
    root = workspace.root / "taming"
    known = {key: load_painting(one.file(workspace)) for key, one in read_index(workspace).items()}
    seen = []
    for name in ("train", "val"):
        lines = (root / f"{name}.txt").read_text().splitlines()
        pairs = as_segmentation_base(root / f"{name}.txt", root / "images", root / "segmentations")
        for line, (image, mask) in zip(lines, pairs, strict=True):
            key = line[: -len(".jpg")]
            seen.append(key)
            np.testing.assert_array_equal(image, known[key])
            np.testing.assert_array_equal(mask, read_mask(workspace.mask("shifted", key), Encoding.SHIFTED))
            np.eye(182)[mask]  # every value has a channel
        listed = (root / f"{name}-images.txt").read_text().splitlines()
        assert [Path(one).exists() for one in listed] == [True] * len(lines)  # CustomTrain, CustomTest
    assert sorted(seen) == sorted(workspace.keys_with_mask("shifted"))
    data = yaml.safe_load((root / "data.yaml").read_text())["data"]["params"]
    assert data["train"]["params"]["data_csv"] == str((root / "train.txt").resolve())
    before = {path: path.stat().st_ino for path in root.rglob("*.jpg")}
    convert(workspace, ConvertConfig(layout="taming", held_out=0.3))
    assert {path: path.stat().st_ino for path in root.rglob("*.jpg")} == before


def test_a_linked_painting_keeps_its_permissions(workspace: Workspace) -> None:
    painting = workspace.root / "paintings" / "set" / "p0.png"
    painting.chmod(0o400)
    convert(workspace, ConvertConfig(layout="taming"))
    assert (workspace.root / "taming" / "images" / "set" / "p0.png").samefile(painting)
    assert painting.stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("left", [0, 9, 200, -4])
def test_a_damaged_shifted_mask_is_written_again(workspace: Workspace, left: int) -> None:
    convert(workspace, DEFAULT)
    for key in ("set/p1", "set/p3"):
        path = workspace.mask("shifted", key)
        path.write_bytes(path.read_bytes()[:left])
    assert convert(workspace, DEFAULT).written == 2
    read_mask(workspace.mask("shifted", "set/p1"), Encoding.SHIFTED)
    path.write_bytes(b"")
    workspace.mask("pseudo", "set/p3").unlink()
    assert convert(workspace, DEFAULT).removed == 0  # not known to be ours: it stays


def test_only_what_changed_is_written(workspace: Workspace) -> None:
    convert(workspace, DEFAULT)
    before = {
        key: workspace.mask("shifted", key).stat().st_mtime_ns for key in workspace.keys_with_mask("shifted")
    }
    again = convert(workspace, DEFAULT)
    assert (again.written, again.unchanged) == (0, 4)
    write_mask(workspace.mask("hand", "set/p3"), toy(3, (43, 56))[1], Encoding.RAW)  # a person took over
    write_mask(workspace.mask("hand", "set/p0"), np.full((40, 56), 95, np.uint8), Encoding.RAW)
    result = convert(workspace, DEFAULT)
    assert (result.written, result.unchanged, result.hand, result.pseudo) == (2, 2, 4, 0)
    after = {key: workspace.mask("shifted", key).stat().st_mtime_ns for key in before}
    assert {key for key in before if before[key] != after[key]} == {"set/p0", "set/p3"}
    assert (read_mask(workspace.mask("shifted", "set/p0"), Encoding.SHIFTED) == 96).all()


def test_masks_whose_source_is_gone_go_too(workspace: Workspace) -> None:
    convert(workspace, DEFAULT)
    workspace.mask("pseudo", "set/p3").unlink()
    foreign = workspace.mask("shifted", "drawn-by-the-user")
    write_mask(foreign, np.zeros((4, 4), np.uint8), Encoding.SHIFTED)
    assert convert(workspace, DEFAULT).removed == 1
    assert not workspace.mask("shifted", "set/p3").exists()
    assert foreign.exists()
    (workspace.root / "paintings" / "set" / "p1.png").unlink()
    index(workspace)
    assert convert(workspace, DEFAULT).removed == 1
    assert "set/p1" not in (workspace.masks("shifted") / "manifest.json").read_text()


def test_id_181_has_no_channel(workspace: Workspace) -> None:
    write_mask(workspace.mask("hand", "set/p1"), np.full((41, 56), 181, np.uint8), Encoding.RAW)
    with pytest.raises(UserError, match=r"p1\.png: raw id 181 .*--n-labels 183"):
        convert(workspace, DEFAULT)
    convert(workspace, ConvertConfig(n_labels=183))
    assert (read_mask(workspace.mask("shifted", "set/p1"), Encoding.SHIFTED) == 182).all()


def test_one_bad_mask_is_reported_and_the_rest_goes_on(workspace: Workspace) -> None:
    convert(workspace, DEFAULT)
    write_mask(workspace.mask("hand", "set/p0"), np.zeros((9, 9), np.uint8), Encoding.RAW)
    workspace.mask("hand", "set/p1").write_bytes(b"not a PNG")
    write_mask(workspace.mask("hand", "set/p2"), np.zeros((42, 56), np.uint8), Encoding.SHIFTED)
    result = convert(workspace, DEFAULT)
    assert result.pseudo == 1
    assert "p0.png: the mask is 9 x 9, its painting 40 x 56" in result.problems[0]
    assert "p1.png: not a readable PNG" in result.problems[1]
    assert "p2.png: is coco-stuff-shifted, but coco-stuff-raw is needed" in result.problems[2]
    assert workspace.keys_with_mask("shifted") == ["set/p3"]  # no stale mask of the old sources
    workspace.mask("hand", "set/p1").unlink()
    workspace.mask("hand", "set/p1").mkdir()
    assert "p1.png: cannot be read (Is a directory)" in convert(workspace, DEFAULT).problems[1]


def test_no_masks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no masks to convert"):
        convert(toy_workspace(tmp_path, hand=0), DEFAULT)


def test_the_held_out_share_is_stable() -> None:
    keys = [f"p{n}" for n in range(100)]
    first = held_out_share(keys, DEFAULT)
    assert len(first) == 10
    assert held_out_share(reversed(keys), DEFAULT) == first
    assert held_out_share(keys, ConvertConfig(seed=1)) != first
    assert len(held_out_share([*keys, "one more"], DEFAULT) & first) >= 9
    assert held_out_share(keys, ConvertConfig(held_out=0.0)) == set()
