"""Results and folders that a session's processes share."""

import os
from pathlib import Path

import pytest

from tests.forks import fork, statuses_of
from tests.shared_results import SharedResults, made_once


def test_what_one_process_has_noted_the_others_know() -> None:
    results: SharedResults[str, tuple[int, int]] = SharedResults()

    def note() -> None:
        results["a"] = (1, 2)
        results["b"] = (3, 4)

    def look() -> None:
        assert "a" in results
        assert (results["a"], results["b"]) == ((1, 2), (3, 4))
        assert "c" not in results

    assert statuses_of([fork(note)]) == [0]
    assert statuses_of([fork(look)]) == [0]
    look()


def test_a_folder_is_made_by_whichever_process_comes_first(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    def make(folder: Path) -> None:
        (folder / "maker").write_text(str(os.getpid()))

    def ask() -> None:
        (tmp_path / str(os.getpid())).write_text(str(made_once(tmp_path_factory, "test-of-made-once", make)))

    askers = [fork(ask) for _ in range(3)]
    assert statuses_of(askers) == [0] * 3
    (folder,) = {(tmp_path / str(asker)).read_text() for asker in askers}
    assert made_once(tmp_path_factory, "test-of-made-once", make) == Path(folder)
    assert int((Path(folder) / "maker").read_text()) in askers
