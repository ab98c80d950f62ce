"""Figures and pictures as parts of a page.

Draw with `new_figure` and matplotlib, then `svg` makes it part of the page. Its text can be copied
and searched, and takes the page's font. Lines and text in `INK` have the page's text colour, light
or dark; `COLORS` are readable on both. Set labels that hold an id with `parse_math=False`.
"""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image

Value = TypeVar("Value")

INK = "#010203"
"""Stands for the page's text colour."""
COLORS = ("#3a7fc1", "#d9691e", "#1d9a86", "#9065b0")
"""For data; at least 3:1 against the light and the dark page."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segmodel",  # the same figure has the same ids every time
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_TAG = re.compile(r"<[a-zA-Z][^>]*>")
_GROUP_ID = re.compile(r'(<g) id="[^"]*"')


def new_figure(width: float = 5.0, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        width: in inches. 5 fits a phone and half a desktop page.
        height: in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        return figure, figure.subplots()


def thin(values: Sequence[Value], limit: int) -> list[Value]:
    """At most `limit` of some values, equally spaced, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(len(values), limit)).round().astype(int)
    return [values[place] for place in places]


def svg(figure: Figure, alt: str) -> Markup:
    """A figure as an inline `<svg>`.

    Args:
        figure: from `new_figure`.
        alt: what it shows, for those who do not see it.
    """
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(
            text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    width, height = figure.get_size_inches() * 96
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    body = drawn[drawn.index(">") + 1 :]
    body = re.sub(
        r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL
    )
    # The policy of the page forbids style attributes. Presentation attributes do the same.
    body = _TAG.sub(lambda tag: _presentation(tag[0]), body)
    head = (
        '<svg xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width * 0.75:g} {height * 0.75:g}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(alt)}">'
    )
    # matplotlib escapes all text that it draws.
    return Markup(head + body)  # noqa: S704


def picture(pixels: npt.NDArray[np.uint8], quality: int = 80) -> str:
    """A WebP picture as a `data:` URI for an `<img>`.

    Args:
        pixels: (rows, columns) of grey values or (rows, columns, 3) of RGB.
        quality: 0 to 100.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _presentation(tag: str) -> str:
    """A tag of matplotlib's with attributes in place of its style, and without ids of groups."""
    tag = _GROUP_ID.sub(r"\1", tag)
    tag = re.sub(r' style="([^"]*)"', lambda style: _attributes(style[1]), tag)
    return tag.replace(f'"{INK}"', '"currentColor"')


def _attributes(style: str) -> str:
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    return "".join(
        f' {name.strip()}="{value.strip()}"'
        for name, value in pairs
        if name.strip() != "font-family"
    )
