"""Label Studio's labelling interface, made from the class table.

Every class stands there once; the tool (brush `b`, polygon `p`, eraser `e`) is chosen on the toolbar. So a
region comes as two results of one id: its shape (`brush`), and its shape with the label (`label`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import Any

from annotate.classes import ClassTable
from annotate.regions import BRUSH, IMAGE, LABEL, POLYGON

# How strongly a region covers the painting: seen at a glance, and the strokes still show through. Brush regions
# have their own fixed 0.6 in the editor.
OPACITY = "0.5"
# The editor fits a small image to the width without its toolbar's 42 pixels, and then cuts its edges off: at
# 600 x 400, 2.4% at each side. The slider of the brush's size takes 40 more, and lay over the painting's corner
# (both seen with 1.23.2).
_BESIDE_TOOLS = "calc(100% - 84px)"
# The editor leaves room for its own bars alone, and a tall painting's foot lay below the screen.
_BELOW_LABELS = "calc(100vh - 232px)"
_KEYS = "1234567890qwtasdfgxcyijknm"  # letters that the editor's own tools leave free


def labelling_interface(classes: ClassTable) -> str:
    """The labelling configuration: brush, eraser and polygon for every class, with colour and hotkey.

    Source: labelstud.io/tags (Image, Labels, Brush, Polygon).
    """
    view = ET.Element("View")
    # above the painting: below a tall one, a screen of 768 pixels does not show it
    labels = ET.SubElement(view, "Labels", name=LABEL, toName=IMAGE, opacity=OPACITY, showInline="true")
    for number, one in enumerate(classes.classes):
        label = ET.SubElement(labels, "Label", value=one.name, background=one.color)
        if number < len(_KEYS):
            label.set("hotkey", _KEYS[number])
    ET.SubElement(
        view,
        "Image",
        name=IMAGE,
        value="$image",
        width=_BESIDE_TOOLS,
        maxHeight=_BELOW_LABELS,
        zoom="true",
        zoomControl="true",
        brightnessControl="true",
        contrastControl="true",
        rotateControl="false",  # masks of a turned image would not fit the painting
        smoothing="false",  # zoomed in, pixels stay pixels
    )
    ET.SubElement(view, "Brush", name=BRUSH, toName=IMAGE)
    ET.SubElement(view, "Polygon", name=POLYGON, toName=IMAGE, strokeWidth="2", pointSize="small")
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def as_drawn(regions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Regions of `annotate.regions` as this interface writes them: the shape, then the shape with its label.

    Both carry the shape, as the server checks each by itself. Regions of another form are left as they are.
    """
    results: list[dict[str, Any]] = []
    for region in regions:
        shape, kind = str(region["from_name"]), str(region["type"])
        if shape not in (BRUSH, POLYGON) or kind != f"{shape}labels":
            results.append(dict(region))
            continue
        value = {name: part for name, part in region["value"].items() if name != kind}
        results.append({**region, "type": shape, "value": value})
        labelled = {**value, "labels": region["value"][kind]}
        results.append({**region, "from_name": LABEL, "type": "labels", "value": labelled})
    return results


def shows(config: str, classes: ClassTable) -> bool:
    """Whether a project's interface has every class in its colour, whatever else a person added there."""
    try:
        found = {
            (element.get("value"), (element.get("background") or "").lower())
            for element in ET.fromstring(config).iter("Label")
        }
    except ET.ParseError:
        return False
    return all((one.name, one.color.lower()) in found for one in classes.classes)
