"""The page of a report: one HTML file that holds its document, its style and its scripts, and loads nothing."""

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import cast

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = (
    *("data", "format", "dom", "chart", "curves", "summary", "tables", "dynamics"),
    *("keep", "heat_text", "heat", "main"),
)
"""In the order in which the page runs them; they share one scope."""
_UNSAFE = re.compile("[<\u2028\u2029\ud800-\udfff]")
"""What could end the element that holds the document, ends a line in a script, or is no text in UTF-8."""


def render(document: Mapping[str, object]) -> str:
    """The page of a document.

    The page's policy refuses every request, and every script and style but its own, which it names by their SHA-256.

    Args:
        document: what the page shows; docs/report.md describes it. Texts may hold anything.

    Raises:
        ValueError: the document holds a NaN or an infinite number outside of its packed arrays, which JSON has not.
    """
    style, in_short = _read("page.css"), cast("Sequence[str]", document["in_short"])
    script = "(() => {\n'use strict';\n" + "".join(_read(f"{name}.js") for name in _SCRIPTS) + "})();\n"
    return Template(_read("template.html")).substitute(
        policy=f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'",
        title=_escaped(str(document["title"])),
        style=style,
        script=script,
        # A browser that runs scripts shows none of it.
        in_short="".join(f"<p>{_escaped(sentence)}</p>" for sentence in in_short),
        document=_as_json(document),
    )


def _as_json(document: Mapping[str, object]) -> str:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(text: str) -> str:
    """The text in HTML, without lone surrogates, which a file name may bring and UTF-8 cannot encode."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _source(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
