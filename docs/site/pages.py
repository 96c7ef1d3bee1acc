"""Which file of the repository is which page of the site."""

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from docs.site.command_line import command_line_page
from docs.site.links import SHOWN_FILES, Links, picture_place, shown_place
from docs.site.settings import REFERENCES, reference_page

SOURCES = {
    "README.md": "index.md",
    "data/README.md": "corpus-recipes.md",
    "CONTRIBUTING.md": "contributing.md",
    "STYLE.md": "style.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that are no file of docs/: file of the repository to page of the site. README.md is the first page."""
COMMAND_LINE = "reference/command-line.md"
_NAVIGATION = Path(__file__).parent / "mkdocs.yml"


def titles() -> dict[str, str]:
    """Page of the site to its short title in the navigation."""
    # BaseLoader calls nothing: a tag of the file names a function for the renderer.
    settings = yaml.load(_NAVIGATION.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return dict(_entries(settings["nav"]))


def sources(root: Path) -> dict[str, str]:
    """File of the repository to its page of the site."""
    return SOURCES | {f"docs/{path.name}": path.name for path in sorted((root / "docs").glob("*.md"))}


def write_pages(root: Path, folder: Path) -> None:
    """Writes all pages, and the pictures in them, into `folder`.

    Raises:
        ValueError: a link leads to a file that is no page, or a page is missing in the navigation.
    """
    of_files, named = sources(root), titles()
    made = {page: reference_page(reference) for page, reference in REFERENCES.items()}
    made[COMMAND_LINE] = command_line_page()
    missing = sorted({*of_files.values(), *made} - set(named))
    if missing:
        raise ValueError(f"{_NAVIGATION}: {', '.join(missing)} is in no place of the navigation; add it to nav")
    links = Links(root, {source: (page, named[page]) for source, page in of_files.items()})
    for source, page in of_files.items():
        text = (root / source).read_text(encoding="utf-8")
        made[page] = links.rewritten(source, text)
    for shown in links.shown:
        made[shown_place(shown)] = _shown(root, shown)
    for page, text in made.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "pictures").mkdir()
    for picture in links.pictures:
        shutil.copyfile(root / picture, folder / picture_place(picture))
    shutil.copyfile(Path(__file__).parent / "site.css", folder / "site.css")


def _entries(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for entry in entries:
        for title, inner in entry.items():
            found += _entries(inner) if isinstance(inner, list) else [(inner, title)]
    return found


def _shown(root: Path, named: str) -> str:
    """The page of a file. The search does not find it: it would hide the pages that explain it."""
    language = SHOWN_FILES[PurePosixPath(named).suffix]
    content = (root / named).read_text(encoding="utf-8").rstrip()
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{named}`\n\n````{language}\n{content}\n````\n"
