"""The labelling interface: every class once, whatever its name, and regions in the form that it writes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from annotate.classes import ClassTable, PaintingClass
from annotate.interface import as_drawn, labelling_interface, shows
from annotate.regions import brush_region, class_map, polygon_regions

STRANGE = ClassTable(
    (
        PaintingClass('"Dunst" & <Nebel>', 119, "#cccccc", 0),
        PaintingClass("árbol 'виноград'", 168, "#00ff00", 1),
    )
)


def test_every_class_stands_there_once_with_colour_and_hotkey() -> None:
    view = ET.fromstring(labelling_interface(ClassTable()))
    labels = list(view.iter("Label"))
    assert [one.get("value") for one in labels] == ClassTable().names
    assert [one.get("background") for one in labels] == [one.color for one in ClassTable().classes]
    assert [one.get("hotkey") for one in labels] == ["1", "2", "3", "4", "5", "6"]
    image = view.find("Image")
    assert image is not None
    assert image.get("zoom") == image.get("zoomControl") == "true"
    for tool in ("Labels", "Brush", "Polygon"):
        element = view.find(tool)
        assert element is not None
        assert element.get("toName") == image.get("name")


def test_names_with_quotes_and_accents_survive() -> None:
    view = ET.fromstring(labelling_interface(STRANGE))
    assert [one.get("value") for one in view.iter("Label")] == STRANGE.names


def test_many_classes_get_hotkeys_that_no_tool_uses() -> None:
    many = ClassTable(tuple(PaintingClass(f"class {n}", n, "#123456", n) for n in range(60)))
    keys = [one.get("hotkey") for one in ET.fromstring(labelling_interface(many)).iter("Label")]
    given = [key for key in keys if key]
    assert len(set(given)) == len(given) >= 20
    assert not set(given) & set("bepvhuz"), "the editor's own tools"
    assert len(keys) == 60


def test_an_interface_that_a_person_extended_still_shows_the_classes() -> None:
    ours = labelling_interface(STRANGE)
    assert shows(ours, STRANGE)
    assert shows(ours.replace("</Labels>", '<Label value="mine"/></Labels>'), STRANGE)
    assert shows(ours.replace("#00ff00", "#00FF00"), STRANGE)
    assert not shows(ours.replace("#00ff00", "#0000ff"), STRANGE)
    assert not shows(ours, ClassTable())
    assert not shows("<View>", STRANGE)


@pytest.mark.parametrize("form", ["brush", "polygon"])
def test_regions_take_the_form_that_the_editor_writes_and_show_the_same(form: str) -> None:
    mask = np.zeros((9, 14), np.bool_)
    mask[2:7, 3:11] = True
    name = STRANGE.names[0]
    plain = [brush_region(mask, name)] if form == "brush" else polygon_regions(mask, name, tolerance=0)
    drawn = as_drawn(plain)
    assert [(one["type"], one["from_name"]) for one in drawn] == [(form, form), ("labels", "label")]
    assert drawn[0]["id"] == drawn[1]["id"] == plain[0]["id"]
    assert "labels" not in drawn[0]["value"]
    assert drawn[1]["value"] == {**drawn[0]["value"], "labels": [name]}
    expected = class_map(plain, (9, 14), STRANGE)
    found = class_map(drawn, (9, 14), STRANGE)
    assert np.array_equal(found.ids, expected.ids)
    assert (found.unknown, found.problems) == ((), ())
    assert as_drawn(drawn) == drawn
