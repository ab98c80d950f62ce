"""The frame of all report pages: texts, policy, figures, pictures, tables in a real browser."""

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from jinja2 import DictLoader
from PIL import Image

from segmodel.report import embed, page
from tests.support.browser import needs_chromium, visit

EVIL = """"><script>alert(1)</script>'<b style="x:y">&"""
TEMPLATE = """{% extends "base.html" %}{% import "parts.html" as parts %}{% block content %}
{{ parts.tiles([(1, "patients")]) }}{{ parts.facts([("id", evil)]) }}{{ parts.note(evil, "warn") }}
{{ parts.figure(figure, "a figure") }}<img alt="" src="{{ picture }}">
{{ parts.table("t", [("patient", "text"), ("ml", "number")], rows, "patients", {evil: "#here"}) }}
{% endblock %}"""


@pytest.fixture
def html(monkeypatch: pytest.MonkeyPatch) -> str:
    """A page with an id of markup in all its parts, and 150 rows: P0 has 0 ml, P148 no volume."""
    environment = page._environment().overlay()
    environment.loader = DictLoader({"test.html": TEMPLATE, **_templates()})
    monkeypatch.setattr(page, "_environment", lambda: environment)
    rows = [[f"P{n}", None if n == 148 else f"{1000 * n:,}"] for n in range(149)]
    return page.render(
        "test.html",
        title=EVIL,
        kind="Test",
        evil=EVIL,
        figure=evil_figure(),
        picture=embed.picture(np.arange(64, dtype=np.uint8).reshape(8, 8)),
        rows=[[EVIL, "0.5"], *rows],
    )


def _templates() -> dict[str, str]:
    return {path.name: path.read_text() for path in page._TEMPLATES.glob("*.html")}


def evil_figure() -> str:
    figure, axes = embed.new_figure()
    axes.plot([0, 1], [1, 2], marker="o")
    axes.set_xlabel(EVIL, parse_math=False)
    return embed.svg(figure, EVIL)


def test_ids_are_text_and_never_markup(html: str) -> None:
    assert html.count("<script") == 1
    assert "<b style" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 7  # title twice, ..., axis


def test_the_policy_allows_only_the_style_and_script_of_the_package(html: str) -> None:
    (policy,) = re.findall('Content-Security-Policy" content="(.*?)"', html)
    policy = policy.replace("&#39;", "'")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_a_figure_has_no_styles_and_takes_the_colour_of_the_page() -> None:
    drawn = evil_figure()
    tags = re.findall("<[^>]*>", drawn)
    assert not [tag for tag in tags if ' style="' in tag or tag.startswith("<style")]
    assert embed.INK not in drawn
    assert "currentColor" in drawn
    assert f'stroke="{embed.COLORS[0]}"' in drawn
    assert drawn == evil_figure()  # the same ids each time


def test_a_long_curve_is_thinned_and_keeps_both_ends() -> None:
    assert embed.thin(range(9), 3) == [0, 4, 8]
    assert embed.thin("abc", 5) == ["a", "b", "c"]
    assert embed.thin([], 3) == []


def test_a_picture_is_a_webp_of_the_same_size() -> None:
    uri = embed.picture(np.zeros((3, 5), dtype=np.uint8))
    content = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("WEBP", (5, 3))


@needs_chromium
def test_a_browser_shows_sorts_and_filters_it(html: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html)
    with visit(path, width=390) as visited:
        shown = "tr:not([hidden]) td:first-child"
        cells = visited.page.locator(f"#t tbody {shown}")
        assert cells.count() == 100  # of 150
        header = visited.page.get_by_role("button", name="ml")
        header.click()
        assert cells.first.text_content() == "P147"  # 147,000 ml; P148 has none
        header.click()
        assert cells.first.text_content() == "P0"
        visited.page.get_by_role("button", name="Show all").click()
        assert cells.count() == 150
        assert cells.last.text_content() == "P148"
        visited.page.get_by_role("searchbox").fill("p12 0")
        assert cells.all_text_contents() == ["P12", *(f"P{n}" for n in range(120, 130))]
        assert visited.page.locator("output").text_content() == "11 patients"
        assert visited.overflow() == 0
        assert visited.broken_images() == 0
        assert visited.errors == []
        assert visited.foreign_requests == []


@needs_chromium
def test_on_paper_a_long_table_is_whole_or_says_what_was_filtered(
    html: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(html)
    with visit(path) as visited:
        page = visited.page
        page.evaluate(
            """window.addEventListener("beforeprint", () => { window.printed =
            [document.querySelector("#t tbody").rows.length,
             document.querySelector("#t output").textContent,
             document.querySelector("#t .bar").classList.contains("part")]; })"""
        )

        def printed() -> list[object]:
            page.pdf()
            return page.evaluate("window.printed")

        assert printed() == [150, "150 patients", False]
        assert page.locator("#t tbody tr").count() == 100  # as before
        page.get_by_role("searchbox").fill("p12")
        assert printed() == [11, "11 of 150 patients", True]
        page.emulate_media(media="print")
        assert page.locator("#t output").is_visible()
        assert not page.get_by_role("searchbox").is_visible()
        page.get_by_role("searchbox", include_hidden=True).evaluate(
            "box => { box.value = ''; box.dispatchEvent(new Event('input')); }"
        )
        assert page.locator("#t output").is_visible()  # 100 of 150 rows
        assert visited.errors == []
