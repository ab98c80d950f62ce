"""Renders a report page: one HTML file that holds all it needs and loads nothing.

What a page is built with:

- `render("name.html", title=..., ...)` renders a template of `segmodel/report/templates`.
- `base.html` is the frame: `{% extends "base.html" %}`, then the blocks `subtitle` and `content`.
  It needs `title` (text) and `kind` (what the page is about, such as "Segmentation").
- `parts.html` has macros, `{% import "parts.html" as parts %}`: `facts`, `tiles`, `table`,
  `figure`, `note`. Each says at its top what it takes.
- `page.css` and `page.js` hold all style and script. Tables of `parts.table` sort and filter; a
  click on a slice of `parts.slice` enlarges it.
- `embed.py` makes matplotlib figures and pictures part of a page.

Every text is escaped, ids from an archive too. The page's content security policy allows the style
and the script of this package, by their hash, and pictures inside the page; nothing else. So a
template must not use `style="..."`, `onclick="..."` or a `<script>` or `<style>` of its own.
"""

import base64
import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import segmodel

REPORT = "report.html"
"""Name of the page in an output folder."""

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """The HTML of a page.

    Args:
        template: its name in `templates/`.
        context: what the template uses.

    Raises:
        jinja2.UndefinedError: the template uses something that is not in `context`.
    """
    style, script = _read("page.css"), _read("page.js")
    return (
        _environment()
        .get_template(template)
        .render(
            context,
            style=Markup(style),  # noqa: S704 - a file of this package
            script=Markup(script),  # noqa: S704 - a file of this package
            policy=_policy(style, script),
            version=segmodel.__version__,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators, or a dash; in templates the filter `number`."""
    return "\u2013" if value is None else f"{value:,.{digits}f}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


@cache
def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
