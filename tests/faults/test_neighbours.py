"""Two runs on one host: one crashes, the other comes to its weights, and neither leaves anything."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.elastic import ElasticRun
from tests.faults.figures import Figures
from tests.faults.host import (
    SharedFile,
    all_listening_sockets,
    listening_sockets,
    processes_of,
    shared_files_of,
    wait_until_gone,
)
from tests.faults.runs import Material, weights_sha256

LOOK_SECONDS = 0.2


def all_processes_of(runs: Sequence[ElasticRun]) -> set[int]:
    return {process for run in runs for process in processes_of(run.mark)}


def held_until_the_end(runs: Sequence[ElasticRun]) -> tuple[set[str], set[SharedFile]]:
    """The listening sockets and the files that the processes of the runs have shared, when both are over."""
    sockets: set[str] = set()
    files: set[SharedFile] = set()
    while any(run.is_running for run in runs):
        processes = all_processes_of(runs)
        sockets |= listening_sockets(processes)
        files |= shared_files_of(processes)
        time.sleep(LOOK_SECONDS)
    return sockets, files


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_crash_does_not_touch_the_neighbour(
    material: Material, undisturbed: str, figures: Figures, tmp_path: Path
) -> None:
    crashing_config, healthy_config = material.config(tmp_path / "crash"), material.config(tmp_path / "healthy")
    with (
        ElasticRun(crashing_config, tmp_path / "a", faults="kill@rank1:step6") as crashing,
        ElasticRun(healthy_config, tmp_path / "b") as healthy,
    ):
        runs = (crashing, healthy)
        sockets, files = held_until_the_end(runs)
        assert sockets
        assert files
        assert crashing.wait(seconds=1) == 1
        assert healthy.wait(seconds=1) == 0, healthy.output
        wait_until_gone(lambda: all_processes_of(runs))
        processes_left = all_processes_of(runs)
    assert weights_sha256(healthy_config) == undisturbed
    wait_until_gone(lambda: {each for each in files if each.exists()})
    sockets_left = sockets & all_listening_sockets()
    assert not sockets_left
    figures.record(
        "neighbours",
        processes_left=len(processes_left),
        shared_files_left=sum(each.exists() for each in files),
        shared_files_used=len(files),
        ports_left=len(sockets_left),
        ports_used=len(sockets),
    )
