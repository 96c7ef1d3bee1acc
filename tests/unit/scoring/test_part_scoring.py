"""The values of scored rows: on the disk before their file has its name, because a name means that they are done."""

from pathlib import Path

import numpy as np
import pytest

from megaslm.files import unfinished
from megaslm.scoring.part_scoring import ScoredRows, StoredRows, write_values
from tests.disk_order import record_disk_order


def test_values_are_synced_before_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "values.npy"
    stored = StoredRows(np.zeros((2, 5), dtype=np.uint16), 0, {})
    scored = [ScoredRows(stored, np.full((1, 2, 4), nats, dtype=np.float16)) for nats in (1.0, 2.0)]
    calls = record_disk_order(monkeypatch)
    write_values(path, scored)
    assert calls == [("sync", unfinished(path).name), ("rename", path.name)]
    assert np.load(path)["values"][:, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
