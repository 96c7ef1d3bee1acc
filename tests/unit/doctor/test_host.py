"""What the doctor says of this host's temporary folder, and of the environment that a launcher leaves."""

import tempfile
from pathlib import Path

import pytest

from megaslm.doctor.host import launcher, temporary_folder
from megaslm.errors import LaunchError
from tests.messages import Says


def test_a_temporary_folder_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (check,) = temporary_folder()
    assert check.status == "ok"
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    (check,) = temporary_folder()
    assert check.status == "warning"
    says(check.lines(), tmp_path / "nowhere", FALLBACK=tempfile.gettempdir())


def test_what_a_launcher_has_left_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    (check,) = launcher()
    assert check.status == "ok"
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(LaunchError):
        list(launcher())
    seat = {"WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    for name, value in seat.items():
        monkeypatch.setenv(name, value)
    (check,) = launcher()
    assert check.status == "warning"
