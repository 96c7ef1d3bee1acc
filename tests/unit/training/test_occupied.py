"""A look, before the slow imports, for another job in a run's folder."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from megaslm.config.run_files import LOCK
from megaslm.errors import ConfigError
from megaslm.files import locked
from megaslm.training.occupied import wait_until_free
from tests.messages import Says


def test_a_free_folder_is_left_as_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    wait_until_free(tmp_path / "none", said.append)
    (tmp_path / LOCK).touch()
    wait_until_free(tmp_path, said.append)
    assert said == []
    assert list(tmp_path.iterdir()) == [tmp_path / LOCK]
    with locked(tmp_path / LOCK, busy="the look still holds it"):
        pass


def test_a_folder_in_use_is_refused_after_a_wait_that_is_said_at_once(tmp_path: Path, says: Says) -> None:
    said: list[str] = []
    with locked(tmp_path / LOCK, busy=""), pytest.raises(ConfigError) as refused:
        wait_until_free(tmp_path, said.append, patience_seconds=0.2)
    says("\n".join(said), tmp_path, "0.2 s")
    says(refused.value, tmp_path)


def test_a_job_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    ending = ExitStack()
    ending.enter_context(locked(tmp_path / LOCK, busy=""))
    wait_until_free(tmp_path, lambda _: ending.close())
