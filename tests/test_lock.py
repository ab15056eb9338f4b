"""Two trainings of one model at once: the second is refused, and takes nothing from the first."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from toy_paintings import toy_workspace

from annotate.errors import UserError
from annotate.lock import one_training, take_lock
from annotate.masks import Encoding, read_mask, unshift, write_mask
from cli import main
from generate.training_state import STATE

TRAININGS = (("generate", "train", "mask", "--preset", "small"), ("segment", "train", "--init", "none"))


@pytest.mark.parametrize("words", TRAININGS)
def test_a_second_training_is_refused_and_the_first_ones_state_stays(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    workspace = toy_workspace(tmp_path)
    for key in ("toy 0", "toy 1"):
        raw = unshift(read_mask(workspace.mask("shifted", key), Encoding.SHIFTED))
        write_mask(workspace.mask("hand", key), raw, Encoding.RAW)
    folder = workspace.model("mask-codes" if words[0] == "generate" else "deeplab")
    folder.mkdir(parents=True)
    (folder / STATE).write_bytes(b"the first one's")
    sizes = ["--smallest-side", "0", "--crop", "32", "--batch", "2"]
    with one_training(folder):
        result = CliRunner().invoke(main, [*words, *sizes, "--again", "-w", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert f"{folder}: another training is at it; wait for its end, then run this again" in result.stderr
    assert (folder / STATE).read_bytes() == b"the first one's"


def test_other_models_can_be_trained_meanwhile_and_this_one_afterwards(tmp_path: Path) -> None:
    a, b = (tmp_path / "models" / name for name in "ab")
    for _ in range(2):
        with one_training(a), one_training(b):
            for folder in (a, b):
                assert take_lock(folder.with_name(f".{folder.name}.lock")) is None


def test_what_loads_crops_does_not_hold_it(tmp_path: Path) -> None:
    """Such processes live on for some seconds when their training was killed."""
    folder = tmp_path / "models" / "a"
    with one_training(folder):
        several = multiprocessing.get_context("fork")
        begun = several.Event()
        worker = several.Process(target=_works, args=(begun,), daemon=True)
        worker.start()
        assert begun.wait(10)
    try:
        with one_training(folder):
            assert worker.is_alive()
    finally:
        worker.kill()


def _works(begun: Any) -> None:
    begun.set()
    time.sleep(60)


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with (
        pytest.raises(UserError, match=r"models/\.a\.lock: cannot be written"),
        one_training(tmp_path / "models" / "a"),
    ):
        pass
