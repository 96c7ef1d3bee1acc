"""Tables of docs/operations.md that are made from what tests have measured."""

import string
from collections.abc import Mapping
from dataclasses import dataclass

from tests.faults.figures import Figure, Measured

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """A fault, what happens, and how its figures are told of."""

    name: str
    fault: str
    outcome: str
    figures: str
    """A format string over what the tests record under `name`."""

    def told(self, figures: Mapping[str, Figure]) -> str:
        """The figures in words; where one is missing, that they were not measured."""
        needed = {field for _, field, _, _ in string.Formatter().parse(self.figures) if field is not None}
        return self.figures.format(**figures) if needed <= set(figures) else NOT_MEASURED


@dataclass(frozen=True)
class Table:
    """What stands between two marks of the page."""

    name: str
    """By which the marks know it; `made by` it too."""
    made_by: str
    rows: tuple[Row, ...]
    setting: str
    """In what the figures were measured, beside the machine."""

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: begin (made by `{self.made_by}`) -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"

    def text(self, measured: Measured) -> str:
        """The section of the page between its marks."""
        lines = ["| fault | what happens | figures |", "|---|---|---|"]
        for row in self.rows:
            lines.append(f"| {row.fault} | {row.outcome} | {row.told(measured['rows'].get(row.name, {}))} |")
        lines += ["", f"Measured on {measured['machine'] or 'no machine yet'}, {self.setting}."]
        return "\n".join(lines)

    def put_into(self, page: str, measured: Measured) -> str:
        """The page with what is between the marks made anew."""
        before, begin, rest = page.partition(self.begin)
        _, end, after = rest.partition(self.end)
        assert begin, f"the page holds no {self.begin}"
        assert end, f"the page holds no {self.end}"
        return f"{before}{begin}\n\n{self.text(measured)}\n\n{end}{after}"

    def measured_rows(self, measured: Measured) -> int:
        """How many rows have all their figures."""
        return sum(row.told(measured["rows"].get(row.name, {})) != NOT_MEASURED for row in self.rows)
