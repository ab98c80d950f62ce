"""A report page in a real browser without a network; skipped where chromium is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Visit:
    """An open page, and what a person would not see: its errors and what it asked a network for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: object) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    @property
    def foreign_requests(self) -> list[str]:
        """All but the file itself and what lies in it."""
        return [url for url in self.requests if not url.startswith(("file:", "data:"))]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def broken_images(self) -> int:
        """Images that the browser could not decode."""
        script = """Promise.all(Array.from(document.images, image => { image.loading = "eager";
            return image.decode().then(() => 0, () => 1); }))
            .then(all => all.reduce((a, b) => a + b, 0))"""
        return self.page.evaluate(script)


@contextmanager
def visit(
    path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[Visit]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        found = Visit(page)
        page.goto(path.as_uri())
        yield found
        browser.close()
