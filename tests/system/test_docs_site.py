"""The site of docs/ is built strictly, and fetches nothing from elsewhere when it is read."""

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from docs.site.__main__ import build, render

ROOT = Path(__file__).resolve().parents[2]
READ = ("index.html", "architecture.html", "results.html", "reference/run.html", "files/data/tora.yaml.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    assert build(ROOT, folder) == 0
    return folder / "site"


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(site)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    serving.join()
    server.server_close()


def test_reading_fetches_nothing_from_elsewhere(address: str, browser: Any) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in READ:
        page.goto(address + name, wait_until="networkidle")
        assert page.locator("h1").count() == 1
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.parametrize("link", ["[gone](gone.md)", "[gone](training.md#gone)"])
def test_a_dead_link_fails_the_build(site: Path, tmp_path: Path, link: str) -> None:
    shutil.copytree(site.parent, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "pages" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{link}\n")
    assert render(tmp_path) != 0
