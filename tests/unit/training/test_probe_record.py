"""What is told of the probe rows: how much of the selection has changed, and the text that it keeps."""

from pathlib import Path

import numpy as np
import pytest

from megaslm.config.run_files import measurement_file
from megaslm.observe.probe_files import Measurement
from megaslm.training.probe import ProbeReport
from tests.messages import Says
from tests.probed import probe_rows, write_probe
from tests.toy import make_tokenizer

ROWS = probe_rows(scored=True, domains=("web", "code"))
FIRST, SECOND = np.arange(16).reshape(2, 8) < 8, np.arange(16).reshape(2, 8) % 2 == 0


def measured(step: int, kept: np.ndarray | None) -> Measurement:
    return Measurement(step, 100 * step, ROWS.sha256, np.zeros((2, 8), np.float32), "0.5", kept)


@pytest.fixture
def report(tmp_path: Path) -> ProbeReport:
    make_tokenizer(tmp_path / "tokenizer")
    write_probe(tmp_path / "probe", ROWS, np.zeros((2, 2, 8)), kept=np.stack([FIRST, SECOND]))
    return ProbeReport(tmp_path / "probe", ROWS, tmp_path / "tokenizer")


def test_churn_is_what_the_measurement_before_did_not_keep(report: ProbeReport) -> None:
    """Those of steps 0 and 10 are written: the first half of the targets, and every second one."""
    found = [report.record(measured(step, kept), print) for step, kept in ((0, FIRST), (10, SECOND), (20, SECOND))]
    assert [None if record is None else record.churn for record in found] == [None, 0.5, 0.0]
    assert report.record(measured(20, None), print) is None


def test_samples_are_by_turns_text_that_is_not_kept_and_text_that_is(report: ProbeReport) -> None:
    record = report.record(measured(0, FIRST), print)
    assert record is not None
    first, second = record.samples
    assert (first["domain"], first["row"], second["domain"], second["row"]) == ("web", 0, "code", 1)
    # Words are tokens here, and the first of nine tokens is no target.
    assert [len(stretch.split()) for stretch in first["stretches"]] == [1, 8]
    assert [len(stretch.split()) for stretch in second["stretches"]] == [9]


def test_a_corrupt_measurement_costs_the_churn_alone(report: ProbeReport, tmp_path: Path, says: Says) -> None:
    path = measurement_file(tmp_path / "probe", 10)
    path.write_bytes(path.read_bytes()[:50])
    said: list[str] = []
    record = report.record(measured(20, SECOND), said.append)
    assert record is not None
    assert (record.churn, len(record.samples)) == (None, 2)
    (warning,) = said
    says(warning, path, "step 20")
