"""Builds the site of docs/ into build/docs/site: `python -m docs.site`.

The site is MegaSLM's own pages and those that are generated from the schema and from the command line. A dead link or
anchor fails the build. Nothing is fetched, while it is built or while it is read.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from docs.site.pages import write_pages

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Builds the site of this repository. Returns the exit status."""
    folder = ROOT / "build" / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    status = build(ROOT, folder)
    if status == 0:
        print(f"docs: {folder.relative_to(ROOT)}/site/index.html")
    return status


def build(root: Path, folder: Path) -> int:
    """Writes the pages of the repository `root` into `folder`/pages, and the site into `folder`/site.

    Returns the exit status of the renderer: another than 0 where a link or an anchor is dead.

    Raises:
        ValueError: a link leads to a file that is no page, or a page has no place in the navigation.
    """
    write_pages(root, folder / "pages")
    # The renderer reads and writes only below the folder of this file.
    shutil.copyfile(Path(__file__).parent / "mkdocs.yml", folder / "mkdocs.yml")
    return render(folder)


def render(folder: Path) -> int:
    """Renders the pages in `folder` strictly. Returns the exit status."""
    zensical = Path(sys.executable).with_name("zensical")
    command = [zensical, "build", "--strict", "--config-file", folder / "mkdocs.yml"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
