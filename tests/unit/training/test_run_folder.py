"""The lock of a run folder: what it makes, and what it leaves."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.training.run_folder import RunFolder, take
from tests.messages import Says


def test_a_refused_start_leaves_nothing_that_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with ExitStack() as held:
        list(take(tmp_path / "runs" / "a" / "b", held))
        assert (tmp_path / "runs/a/b/.lock").exists()
    assert list((tmp_path / "runs").iterdir()) == []
    for name in (".lock", "config.yaml"):
        (tmp_path / "runs" / name).touch()
        with ExitStack() as held:
            list(take(tmp_path / "runs", held))
        assert (tmp_path / "runs" / ".lock").exists()


def test_a_run_folder_that_cannot_be_made_is_the_mistake_of_its_user(tmp_path: Path, says: Says) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with ExitStack() as held, pytest.raises(ConfigError) as refused:
            list(take(folder, held))
        says(refused, f"run_dir = {folder}")


def test_a_run_keeps_the_folder_of_its_events(tmp_path: Path) -> None:
    """Also one that version 0.1.0 began: a resumed run takes back events of the steps that it makes again."""
    assert RunFolder(tmp_path).tensorboard == tmp_path
    (tmp_path / "tensorboard").mkdir()
    assert RunFolder(tmp_path).tensorboard == tmp_path / "tensorboard"
