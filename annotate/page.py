"""Building blocks of the HTML reports: one self-contained file each, readable on a phone, light or dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.classes import UNLABELLED, ClassTable

Pixels = NDArray[np.uint8]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1b22; --soft: #6b6775; --paper: #faf8f4; --card: #fff;
  --line: #e3ded4; --mark: #b0562c; }
@media (prefers-color-scheme: dark) { :root { --ink: #ece9f1; --soft: #a09bab; --paper: #16151b;
  --card: #1f1e26; --line: #34323d; --mark: #e8935f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 18px 80px; }
h1 { font: 600 34px/1.15 Georgia, "Times New Roman", serif; margin: 12px 0 6px; }
h2 { font: 600 23px/1.25 Georgia, "Times New Roman", serif; margin: 46px 0 8px; }
p { margin: 6px 0 14px; max-width: 72ch; } .soft { color: var(--soft); }
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 10px; margin: 14px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px; }
.card b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 10px 0; font-size: 14px; }
.legend i { width: 13px; height: 13px; border-radius: 3px; display: inline-block; margin-right: 6px;
  vertical-align: -1px; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 8px; margin: 10px 0 20px; }
.curve svg { width: 100%; height: 120px; color: var(--mark); background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; } .curve { margin: 10px 0 20px; }
figure { margin: 0; } img { width: 100%; height: auto; display: block; border-radius: 5px; }
figcaption { color: var(--soft); font-size: 12.5px; margin-top: 4px; overflow-wrap: anywhere; }
.bar { background: var(--line); border-radius: 4px; height: 8px; min-width: 70px; }
.bar i { display: block; background: var(--mark); height: 8px; border-radius: 4px; }
@media (max-width: 560px) { h1 { font-size: 27px; } .row.wrap { grid-auto-flow: row; grid-template-columns: 1fr 1fr; } }
"""


def page(title: str, intro: str, sections: Iterable[str]) -> str:
    """A whole HTML file. `title` and `intro` are plain text; the sections are HTML made by `section`."""
    lead = f'<p class="soft">{escape(intro)}</p>' if intro else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"<h1>{escape(title)}</h1>{lead}\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


def section(heading: str, text: str, *parts: str) -> str:
    """A heading, a line of plain text, and parts that are HTML."""
    lead = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(heading)}</h2>{lead}\n" + "\n".join(parts) + "</section>"


def cards(figures: Mapping[str, str]) -> str:
    """Figures that stand out: label -> value, both plain text."""
    items = (
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in figures.items()
    )
    return f'<div class="cards">{"".join(items)}</div>'


def table(headers: Sequence[str], rows: Iterable[Sequence[str | float | int | None]]) -> str:
    """A table of plain text and numbers; floats of a share (0 to 1) get a bar."""
    rows = list(rows)
    texts = {n for row in rows for n, one in enumerate(row) if isinstance(one, str)}  # columns
    kinds = ["" if n in texts or not rows else ' class="n"' for n in range(len(headers))]
    head = "".join(f"<th{kind}>{escape(one)}</th>" for one, kind in zip(headers, kinds, strict=True))
    body = "".join("<tr>" + "".join(_cell(one) for one in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pictures(*cells: tuple[str, Pixels], wrap: bool = False) -> str:
    """Captioned pictures side by side; with `wrap`, two beside each other on a phone."""
    figures = (
        f"<figure>{image(pixels, text)}<figcaption>{escape(text)}</figcaption></figure>"
        for text, pixels in cells
    )
    return f'<div class="row{" wrap" if wrap else ""}">{"".join(figures)}</div>'


def image(pixels: Pixels, alt: str) -> str:
    """An `<img>` that carries its own data: JPEG for paintings, PNG for pictures of few colours."""
    picture = Image.fromarray(pixels)
    few = picture.getcolors(maxcolors=64) is not None
    buffer = io.BytesIO()
    if few:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(
            buffer, format="PNG", optimize=True
        )
    else:
        picture.convert("RGB").save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    kind = "png" if few else "jpeg"
    return f'<img loading="lazy" alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/{kind};base64,{data}">'


def curve(caption: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through points (x, y) as an inline drawing; the axis says the lowest and highest y."""
    finite = [(x, y) for x, y in points if np.isfinite(x) and np.isfinite(y)]
    if len(finite) < 2:
        return ""
    xs, ys = np.array(finite).T
    low, high = float(ys.min()), float(ys.max())
    across = 8 + 584 * (xs - xs.min()) / max(float(np.ptp(xs)), 1e-9)
    down = 112 - 104 * (ys - low) / max(high - low, 1e-9)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    label = f"{caption}, from {ys[0]:.3g} to {ys[-1]:.3g}"
    return (
        f'<figure class="curve"><svg viewBox="0 0 600 120" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2" '
        'vector-effect="non-scaling-stroke"/></svg>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )


def legend(classes: ClassTable) -> str:
    """The classes' colours and names."""
    items = (
        f'<span><i style="background:{one.color}"></i>{escape(one.name)}</span>' for one in classes.classes
    )
    return (
        f'<div class="legend">{"".join(items)}<span><i style="background:#808080"></i>unlabelled</span></div>'
    )


def colour(ids: Pixels, classes: ClassTable) -> Pixels:
    """(H, W) raw ids as (H, W, 3) class colours; unlabelled is grey."""
    coloured: Pixels = classes.colours()[ids]
    return coloured


def overlay(painting: Pixels, ids: Pixels, classes: ClassTable, opacity: float = 0.5) -> Pixels:
    """The painting with its mask laid over it; unlabelled pixels stay as they are."""
    mixed = painting * (1 - opacity) + colour(ids, classes) * opacity
    shown: Pixels = np.where((ids == UNLABELLED)[..., None], painting, mixed).round().astype(np.uint8)
    return shown


def shrink(pixels: Pixels, side: int = 640) -> Pixels:
    """At most `side` pixels along the longer side; smaller pictures stay as they are."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 20 s`, `36 min`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _cell(value: str | float | int | None) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    if value is None:
        return '<td class="n">-</td>'
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    bar = f'<div class="bar"><i style="width:{100 * value:.0f}%"></i></div>' if 0 <= value <= 1 else ""
    return f'<td class="n">{value:.3f}{bar}</td>'
