"""What is written of probe rows is read back."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from megaslm.observe.probe_files import forget_after, measured_steps, read_measurement, read_rows, write_rows
from tests.probed import probe_rows, write_probe


def test_rows_and_measurements_are_read_back(tmp_path: Path) -> None:
    rows = replace(probe_rows(scored=True, domains=("a", "b")), selected=np.eye(2, 8, dtype=bool))
    losses = np.random.default_rng(0).random((3, 2, 8), np.float32)
    write_probe(tmp_path / "probe", rows, losses, kept=losses > 0.5)
    found = read_rows(tmp_path / "probe")
    assert found is not None
    for field in fields(rows):
        ours, theirs = getattr(rows, field.name), getattr(found, field.name)
        assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
    assert measured_steps(tmp_path / "probe") == [0, 10, 20]
    last = read_measurement(tmp_path / "probe", 20, found)
    assert (last.step, last.tokens_seen, last.keep_ratio) == (20, 2000, "0.5")
    assert np.array_equal(last.losses, losses[2])
    assert last.kept is not None
    assert np.array_equal(last.kept, losses[2] > 0.5)


def test_scores_do_not_change_the_fingerprint_of_rows(tmp_path: Path) -> None:
    assert probe_rows(scored=True).sha256 == probe_rows().sha256
    other = probe_rows()
    other.valid[0, 0] = False
    assert other.sha256 != probe_rows().sha256


def test_measurements_of_later_steps_are_forgotten(tmp_path: Path) -> None:
    write_probe(tmp_path, probe_rows(), np.ones((4, 2, 8)))
    (tmp_path / ".unfinished-step-00000030.safetensors").touch()
    forget_after(tmp_path, 10)
    assert measured_steps(tmp_path) == [0, 10]
    assert read_rows(tmp_path) is not None
    forget_after(tmp_path / "absent", 0)
    assert read_rows(tmp_path / "absent") is None
    write_rows(tmp_path / "absent", probe_rows())
