"""Several annotators of one painting: what counts, and how far they agree."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Painter
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray

from annotate.access import connect
from annotate.agreement import Counts, compare, from_text, majority, measure, to_text
from annotate.classes import ClassTable
from annotate.commands import annotate
from annotate.config import PullConfig, PushConfig
from annotate.interface import as_drawn
from annotate.masks import Encoding, read_mask
from annotate.paintings import read_index, write_index
from annotate.pull import Outcome, pull
from annotate.push import push
from annotate.regions import class_map_regions
from annotate.standing import standing
from annotate.studio import Studio
from annotate.workspace import Workspace

SIZE = (4, 6)
ROAD, SKY, TREES, NONE = 148, 156, 168, 255


def rows(*lines: str) -> NDArray[np.uint8]:
    """A class map, one letter a pixel."""
    letters = {"r": ROAD, "s": SKY, "t": TREES, ".": NONE}
    return np.array([[letters[one] for one in line] for line in lines], np.uint8)


MAPS = (
    rows("ssss..", "sstt..", "rrrrrr", "rrrrrr"),
    rows("sssss.", "stttt.", "rrrrrr", "rrrr.."),
    rows("ssstt.", "ttttss", "ssrrrr", "......"),
)


def test_the_majority_wins_and_of_a_tie_the_latest() -> None:
    assert np.array_equal(majority(MAPS), rows("sssst.", "sttts.", "rrrrrr", "rrrr.."))
    two = majority(MAPS[:2])
    assert np.array_equal(two, MAPS[1]), "two votes for two classes: the later one"
    assert np.array_equal(majority([MAPS[0]]), MAPS[0])


@given(some.lists(some.lists(some.sampled_from([ROAD, SKY, TREES, NONE]), min_size=6, max_size=6), min_size=1, max_size=5))  # fmt: skip
def test_majority_is_a_count_of_votes(votes: list[list[int]]) -> None:
    found = majority([np.array(one, np.uint8).reshape(2, 3) for one in votes]).ravel()
    for pixel in range(6):
        given_ = [one[pixel] for one in votes]
        most = max(given_.count(one) for one in given_)
        tied = [one for one in given_ if given_.count(one) == most]
        assert found[pixel] == tied[-1]


def test_agreement_is_as_counted_by_hand() -> None:
    a, b = rows("ssssssssrr"), rows("sssssstttr")
    found = measure([compare([a, b])], ClassTable())
    assert found is not None
    by_name = {one.name: one for one in found.classes}
    assert by_name["sky"].iou == pytest.approx(6 / 8)
    assert by_name["road"].iou == pytest.approx(1 / 2)
    assert by_name["trees"].iou == 0
    assert by_name["water"].iou is None
    assert by_name["water"].kappa is None
    # sky against all else: seen alike 8 of 10; by chance 0.8 * 0.6 + 0.2 * 0.4
    assert by_name["sky"].kappa == pytest.approx((0.8 - 0.56) / (1 - 0.56))
    # all: alike 7 of 10; by chance sky 0.8 * 0.6, road 0.2 * 0.1
    assert found.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert (found.paintings, found.pixels) == (1, 10)


def test_kappa_and_iou_are_those_of_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import binary_cohen_kappa, binary_jaccard_index
    from torchmetrics.functional.classification import multiclass_cohen_kappa as kappa

    random = np.random.default_rng(3)
    a = random.choice([ROAD, SKY, TREES, NONE], (30, 40)).astype(np.uint8)
    b = np.where(random.random((30, 40)) < 0.6, a, np.uint8(SKY))
    found = measure([compare([a, b])], ClassTable())
    assert found is not None
    one, other = torch.from_numpy(a).int(), torch.from_numpy(b).int()
    assert found.kappa == pytest.approx(float(kappa(one, other, num_classes=256)), abs=1e-5)
    sky = next(entry for entry in found.classes if entry.name == "sky")
    one, other = (one == SKY).int(), (other == SKY).int()
    assert sky.kappa == pytest.approx(float(binary_cohen_kappa(one, other)), abs=1e-5)
    assert sky.iou == pytest.approx(float(binary_jaccard_index(one, other)), abs=1e-5)


def test_annotators_who_agree_entirely() -> None:
    found = measure([compare([MAPS[0], MAPS[0]])] * 2, ClassTable())
    assert found is not None
    assert (found.kappa, found.paintings) == (1.0, 2)
    blank = np.full((2, 2), SKY, np.uint8)
    alone = measure([compare([blank, blank])], ClassTable())
    assert alone is not None
    assert alone.kappa is None, "where both see one class everywhere, chance says as much"
    assert measure([], ClassTable()) is None


def test_counts_survive_their_text() -> None:
    counts = compare(MAPS)
    assert from_text(to_text(counts)) == counts
    assert counts.total() == 3 * 24
    for bad in ("[]", "{", '{"1": 2}', '{"a b": 1}'):
        with pytest.raises(ValueError):
            from_text(bad)
    assert from_text("{}") == Counts()


class Team:
    """Three people at one project of a real server."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace = workspace
        self.project = push(workspace, folder, PushConfig(strategy="all")).project
        self.studio: Studio = connect(workspace)
        self.tasks = {task.key: task.id for task in self.studio.tasks(self.project)}
        self.people = [self.hire() for _ in range(3)]

    def hire(self) -> int:
        name = secrets.token_hex(6)
        who = {"email": f"{name}@example.org", "username": name}
        made = self.studio.connection.send("POST", "api/users/", repeat=False, json=who)
        return int(made["id"])

    def draw(self, who: int, key: str, ids: NDArray[np.uint8]) -> int:
        regions = as_drawn(class_map_regions(ids, self.workspace.settings().classes))
        body = {"result": regions, "completed_by": self.people[who], "lead_time": 10.0}
        path = f"api/tasks/{self.tasks[key]}/annotations/"
        return int(self.studio.connection.send("POST", path, repeat=False, json=body)["id"])

    def pull(self, consensus: str = "latest") -> Any:
        return pull(self.workspace, PullConfig(consensus=consensus))

    def mask(self, key: str) -> NDArray[np.uint8]:
        return read_mask(self.workspace.mask("hand", key), Encoding.RAW)


@pytest.fixture
def team(remote: Workspace, tmp_path: Path, paint: Painter) -> Any:
    for seed, name in enumerate("ab"):
        paint(tmp_path / "paintings" / f"{name}.png", SIZE, seed)
    found = Team(remote, tmp_path / "paintings")
    yield found
    found.studio.close()


@pytest.mark.server
def test_latest_or_majority_and_the_agreement_of_both(team: Team) -> None:
    for who, ids in enumerate(MAPS):
        team.draw(who, "a", ids)
    team.draw(0, "b", MAPS[0])
    first = team.pull()
    assert set(first.outcomes.values()) == {Outcome.NEW}
    assert first.twice == ("a",)
    assert np.array_equal(team.mask("a"), MAPS[2])
    assert team.pull().count(Outcome.UNCHANGED) == 2
    second = team.pull("majority")
    assert second.outcomes == {"a": Outcome.CHANGED, "b": Outcome.UNCHANGED}
    assert np.array_equal(team.mask("a"), majority(MAPS))
    assert "the majority of annotators counts: a" in second.text()
    assert team.pull("majority").count(Outcome.UNCHANGED) == 2
    found = standing(team.workspace).agreement
    assert found is not None
    assert found == measure([compare(MAPS)], team.workspace.settings().classes)
    shown = CliRunner().invoke(annotate, ["status", "-w", str(team.workspace.root)]).stdout
    assert "1 painting annotated by several people" in shown
    value = json.loads(
        CliRunner().invoke(annotate, ["status", "--json", "-w", str(team.workspace.root)]).stdout
    )
    assert value["agreement"]["classes"][3]["name"] == "sky"
    assert value["agreement"]["classes"][3]["iou"] == pytest.approx(found.classes[3].iou)


@pytest.mark.server
def test_a_person_who_annotates_twice_has_one_vote(team: Team) -> None:
    team.draw(0, "a", MAPS[0])
    team.draw(0, "a", MAPS[2])
    team.draw(1, "a", MAPS[1])
    team.pull("majority")
    assert np.array_equal(team.mask("a"), majority([MAPS[2], MAPS[1]]))
    correction = team.draw(2, "a", MAPS[2])
    assert correction
    assert team.pull("majority").outcomes["a"] is Outcome.CHANGED
    assert np.array_equal(team.mask("a"), majority([MAPS[2], MAPS[1], MAPS[2]]))


@pytest.mark.server
def test_a_bad_vote_is_named_and_the_others_count(team: Team) -> None:
    regions = class_map_regions(MAPS[1], team.workspace.settings().classes)
    regions[0]["value"]["rle"] = regions[0]["value"]["rle"][:9]
    team.draw(0, "a", MAPS[0])
    body = {"result": regions, "completed_by": team.people[1]}
    path = f"api/tasks/{team.tasks['a']}/annotations/"
    bad = team.studio.connection.send("POST", path, repeat=False, json=body)["id"]
    for _ in range(2):
        result = team.pull()
        assert result.outcomes["a"] is Outcome.FAILED, "the latest cannot be drawn"
        assert len(result.problems) == 1
    assert not team.workspace.mask("hand", "a").exists()
    for outcome in (Outcome.NEW, Outcome.UNCHANGED):
        result = team.pull("majority")
        assert result.outcomes["a"] is outcome
        assert [f"annotation {bad}" in line for line in result.problems] == [True]
    assert np.array_equal(team.mask("a"), MAPS[0])


@pytest.mark.server
def test_a_region_without_a_label_is_told_at_every_pull(team: Team) -> None:
    drawn = as_drawn(class_map_regions(MAPS[0], team.workspace.settings().classes))
    stray = {**drawn[0], "id": "stray"}
    body = {"result": [*drawn, stray]}
    path = f"api/tasks/{team.tasks['a']}/annotations/"
    number = team.studio.connection.send("POST", path, repeat=False, json=body)["id"]
    expected = (f"a (task {team.tasks['a']}, annotation {number}): region 'stray': a brush without a label",)
    for outcome in (Outcome.NEW, Outcome.UNCHANGED, Outcome.UNCHANGED):
        result = team.pull()
        assert (result.outcomes["a"], result.problems) == (outcome, expected)
    body = {"result": drawn}
    team.studio.connection.send("PATCH", f"api/annotations/{number}/", repeat=True, json=body)
    assert team.pull().problems == ()
    assert team.pull().problems == ()


@pytest.mark.server
def test_the_mask_of_a_painting_that_was_replaced_is_set_aside(
    team: Team, tmp_path: Path, paint: Painter
) -> None:
    team.draw(0, "a", MAPS[0])
    team.pull()
    for kind in ("pseudo", "confidence"):
        team.workspace.mask(kind, "a").parent.mkdir(parents=True)
        team.workspace.mask(kind, "a").write_bytes(team.workspace.mask("hand", "a").read_bytes())
    before = read_index(team.workspace)["a"]
    paint(tmp_path / "paintings" / "a.png", (8, 5), 7)
    assert len(push(team.workspace, tmp_path / "paintings", PushConfig(strategy="all")).problems) == 1
    assert team.workspace.mask("hand", "a").exists(), "its task is still there"
    team.studio.delete_task(team.tasks["a"])
    assert push(team.workspace, tmp_path / "paintings", PushConfig(strategy="all")).added == 1
    assert team.workspace.keys_with_mask("hand") == []
    assert team.workspace.keys_with_mask("pseudo") == []
    assert team.workspace.keys_with_mask("confidence") == []
    kept = team.workspace.root / "masks" / "outdated" / f"a.{before.sha256[:8]}.png"
    assert np.array_equal(read_mask(kept, Encoding.RAW), MAPS[0])
    assert team.pull().outcomes["a"] is Outcome.OPEN
    assert team.workspace.keys_with_mask("hand") == []


@pytest.mark.server
def test_a_painting_that_was_annotated_out_of_turn_is_no_longer_the_models(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    for seed in range(8):
        paint(tmp_path / "paintings" / f"{seed}.png", SIZE, seed)
    team = Team(remote, tmp_path / "paintings")
    write_index(remote, (replace(one, split="rest") for one in read_index(remote).values()))
    team.draw(0, "3", MAPS[0])
    team.pull()
    assert {key for key, one in read_index(remote).items() if one.split == "hand"} == {"3"}
    assert push(remote, tmp_path / "paintings", PushConfig(fraction=0.25)).chosen == 2
    assert "3" in {key for key, one in read_index(remote).items() if one.split == "hand"}
    team.studio.close()
