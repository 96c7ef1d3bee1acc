"""Tables in docs/ whose rows are what the product did a moment ago, so that they cannot say anything else."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[1] / "docs"


def require_table(document: str, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Compares a table of docs/`document` with what was found; writes it instead where MEGASLM_WRITE_TABLES is set."""
    path = _DOCS / document
    content = path.read_text(encoding="utf-8")
    place = re.compile(
        rf"(<!-- table: {re.escape(name)}, made by [^\n]+ -->\n\n)(.*?)(\n<!-- end of table -->)", re.DOTALL
    )
    found = place.search(content)
    assert found is not None, f"docs/{document} has no place for the table {name}"
    lines = [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    made = "".join(f"{line}\n" for line in lines)
    if os.environ.get("MEGASLM_WRITE_TABLES"):
        path.write_text(content[: found.start(2)] + made + content[found.end(2) :], encoding="utf-8")
    else:
        assert found[2] == made, (
            f"docs/{document}: the table {name} is not what was found; MEGASLM_WRITE_TABLES=1 writes it"
        )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
