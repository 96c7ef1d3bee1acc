"""The site of docs/: Python-Markdown finds in a page what GitHub finds in its file, and the references are whole."""

import re
from collections import Counter
from pathlib import Path

import pytest
import typer
from markdown import markdown

from docs.site.blocks import blocks, cell
from docs.site.command_line import command_line_page, verbs
from docs.site.links import Links
from docs.site.pages import sources, titles, write_pages
from docs.site.settings import REFERENCES, reference_page
from megaslm.cli import app
from megaslm.config.problems import SchemaNode
from tests.messages import Says

ROOT = Path(__file__).resolve().parents[2]
TAGS = {
    "bullet_list_open": "ul",
    "ordered_list_open": "ol",
    "list_item_open": "li",
    "fence": "pre",
    "code_block": "pre",
    "table_open": "table",
    "td_open": "td",
    "strong_open": "strong",
    "code_inline": "inline code",
}


def found_by_commonmark(text: str) -> Counter[str]:
    tokens = [inner for token in blocks(text) for inner in (token, *(token.children or ()))]
    return Counter(TAGS[token.type] for token in tokens if token.type in TAGS)


def found_by_python_markdown(text: str) -> Counter[str]:
    html = markdown(text, extensions=["tables", "pymdownx.superfences"])
    tags = Counter(re.findall(r"<(ul|ol|li|pre|table|td|strong|code)\b", html))
    tags["inline code"] = tags.pop("code", 0) - tags["pre"]
    return +tags


@pytest.mark.parametrize("source", sources(ROOT))
def test_a_page_reads_alike_on_github_and_on_the_site(source: str) -> None:
    """Python-Markdown wants four spaces per level of a list, and an empty line before a list, a table or code."""
    text = (ROOT / source).read_text(encoding="utf-8")
    assert found_by_python_markdown(text) == found_by_commonmark(text)


@pytest.mark.parametrize("source", sources(ROOT))
def test_code_stands_between_fences_with_its_language(source: str) -> None:
    found = {
        token.info if token.type == "fence" else token.type
        for token in blocks((ROOT / source).read_text("utf-8"))
        if token.type in ("fence", "code_block")
    }
    assert found <= {"sh", "yaml", "python", "text"}


def test_a_pipe_in_code_is_no_end_of_a_cell() -> None:
    html = markdown(f"| a | b |\n|---|---|\n| {cell('`x|y`')} | {cell('1 | 2')} |\n", extensions=["tables"])
    assert "<td><code>x|y</code></td>" in html
    assert "<td>1 | 2</td>" in html
    assert cell("`x|y` 1 | 2") == "`x|y` 1 \\| 2"


@pytest.mark.parametrize("page", REFERENCES)
def test_a_reference_has_every_setting(page: str) -> None:
    made = reference_page(REFERENCES[page])
    for schema in REFERENCES[page].sections.values():
        pending = [SchemaNode(schema)]
        while pending:
            for name, child in pending.pop().children().items():
                assert re.search(rf"^\| `(?:[\w.]+\.)?{name}` \|", made, re.MULTILINE), name
                pending.append(child)


def test_the_command_line_has_every_verb_and_option() -> None:
    made = command_line_page()
    for words, command in verbs(typer.main.get_command(app)):
        if not hasattr(command, "commands"):
            part = made.partition(f"\n## `{words}`\n")[2].partition("\n## ")[0]
            assert part, words
            for parameter in command.params:
                is_argument = parameter.param_type_name == "argument"
                name = parameter.metavar if is_argument and parameter.metavar else parameter.opts[0]
                row = rf"^\| `(?:-\w, )?{re.escape(name)}(?=[ ,`])"
                is_shown = parameter.name != "help" and not getattr(parameter, "hidden", False)
                assert (re.search(row, part, re.MULTILINE) is not None) == is_shown, (words, name)


def test_links_lead_to_pages_and_shown_files() -> None:
    links = Links(ROOT, {"docs/a.md": ("a.md", "A"), "docs/b.md": ("deep/b.md", "B")})
    text = (
        "[two\nlines](b.md#x), `docs/b.md`, [b.md](b.md), "
        "`data/tora.yaml`, `x docs/b.md`, (docs/b.md).\n\n    docs/b.md\n"
    )
    assert links.rewritten("docs/a.md", text) == (
        "[two\nlines](deep/b.md#x), [B](deep/b.md), [B](deep/b.md), "
        "[`data/tora.yaml`](files/data/tora.yaml.md), `x docs/b.md`, ([B](deep/b.md)).\n\n    docs/b.md\n"
    )
    assert links.shown == {"data/tora.yaml"}


def test_a_dead_link_and_a_page_without_a_place_are_refused(tmp_path: Path, says: Says) -> None:
    links = Links(ROOT, {"docs/a.md": ("a.md", "A")})
    with pytest.raises(ValueError) as refused:
        links.rewritten("docs/a.md", "[gone](gone.md)")
    says(refused, "docs/a.md", "gone.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "new.md").write_text("# New\n", encoding="utf-8")
    with pytest.raises(ValueError) as missing:
        write_pages(tmp_path, tmp_path / "pages")
    says(missing, "new.md", "nav")


def test_the_navigation_has_only_pages_that_are_made() -> None:
    assert set(titles()) == {*sources(ROOT).values(), *REFERENCES, "reference/command-line.md"}
