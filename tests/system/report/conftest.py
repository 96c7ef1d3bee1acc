"""Opens pages of reports in the browser of all tests."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megaslm.report.page import render
from tests.system.report.document import Document

_IS_DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => !plot.clientWidth || plot.firstChild)"
_DRAWN_SECONDS = 30.0

Open = Callable[..., Any]
"""Opens the page of a document. Further arguments are those of playwright's `new_page`."""


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What the pages of a test say to the console, and all that they ask for but their own files: nothing."""
    heard: list[str] = []
    yield heard
    assert heard == []


@pytest.fixture
def open_page(browser: Any, heard: list[str], tmp_path: Path) -> Iterator[Open]:
    pages: list[Any] = []

    def opened(document: Document, **options: Any) -> Any:
        path = tmp_path / f"report-{len(pages)}.html"
        path.write_text(render(document), encoding="utf-8")
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        pages.append(page)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        # A chart is drawn when its width is known. `wait_for_function` would ask again by eval, which the page forbids.
        deadline = time.monotonic() + _DRAWN_SECONDS
        while not page.evaluate(_IS_DRAWN):
            assert time.monotonic() < deadline
            page.wait_for_timeout(20)
        return page

    yield opened
    for page in pages:
        page.close()
