"""The tables of docs/operations.md."""

import re

import pytest

from tests.faults.figures import Measured
from tests.faults.report import FAULTS, PAGE, TABLES
from tests.faults.table import NOT_MEASURED, Table

MEASURED: Measured = {
    "machine": "a machine",
    "rows": {
        "spike": {"steps_to_return": 2, "steps_between_checkpoints": 4},
        "sigkill": {"detection_seconds": 0.1234, "steps_lost": 2},
    },
}


def test_figures_stand_in_their_rows_and_missing_ones_are_said_to_be() -> None:
    lines = {
        line.split(" | ")[0].removeprefix("| "): line for line in FAULTS.text(MEASURED).splitlines() if "|" in line
    }
    spike = lines["a loss spike from bad rows, under `guard.on_spike: rollback`"]
    assert spike.endswith("| 2 steps taken back (a checkpoint every 4) |")
    assert lines["SIGKILL of a rank"].endswith(f"| {NOT_MEASURED} |")
    assert FAULTS.measured_rows(MEASURED) == 1


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_only_what_is_between_the_marks_changes(table: Table) -> None:
    page = table.put_into(f"before\n{table.begin}\nold\n{table.end}\nafter\n", MEASURED)
    assert page == f"before\n{table.begin}\n\n{table.text(MEASURED)}\n\n{table.end}\nafter\n"
    with pytest.raises(AssertionError, match=re.escape(table.begin)):
        table.put_into("no marks", MEASURED)


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_the_page_has_every_row(table: Table) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| {row.fault} | {row.outcome} |" in page for row in table.rows)
