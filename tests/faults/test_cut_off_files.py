"""Killed in the middle of writing weights or moments: half a file is never taken for one."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.faults.cut_off import on_file_work, resumes_from_a_whole_one, unfinished_saves
from tests.faults.figures import Figures
from tests.faults.host import is_alive
from tests.faults.runs import STEPS, Material, run_ranks, start_ranks, weights_sha256
from tests.forks import statuses_of, wait_until
from tests.toy import SHAPE

WIDE = {**SHAPE, "hidden_size": 512, "intermediate_size": 2048}
"""Enough weights for their files to be seen growing: some 15 MB a rank, and moments twice as large."""
FILES = ("weights-00001.safetensors", "optimizer-00001.safetensors")
MOST_TRIES = 5
_BLOCK_BYTES = 512
_LET_GO_SECONDS = 0.001


def stop_at_last_save(config: RunConfig) -> None:
    """Lets the second rank stop itself whenever it works with files of the last save: it is led on from outside."""
    on_file_work(Path(config.run_dir) / "checkpoints", 1, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "T"


def let_go_on(process: int) -> None:
    """For a moment."""
    os.kill(process, signal.SIGCONT)
    time.sleep(_LET_GO_SECONDS)
    os.kill(process, signal.SIGSTOP)
    wait_until(lambda: is_stopped(process) or not is_alive(process))


def is_half_written(process: int, name: str, config: RunConfig) -> bool:
    """Whether a stopped rank is filling that file of its save, and at least a tenth of it is on the disk.

    safetensors fills a file of full length under a name of its own; until it gets its name, an empty one has that.
    """
    for folder in unfinished_saves(config):
        if (folder / name).exists() and (folder / name).stat().st_size == 0:
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                path, status = descriptor.readlink(), descriptor.stat()
                if path.parent == folder and path.name.startswith(".tmp"):
                    return status.st_blocks * _BLOCK_BYTES > status.st_size // 10
    return False


def kill_while_writing(config: RunConfig, name: str) -> bool:
    """Runs until the second rank is filling that file in the last save, and kills it; false if it was too fast."""
    ranks = start_ranks(config, before=lambda: stop_at_last_save(config))
    writing = False
    try:
        wait_until(lambda: is_stopped(ranks[1]))
        while is_alive(ranks[1]) and not writing:
            let_go_on(ranks[1])
            writing = is_alive(ranks[1]) and is_half_written(ranks[1], name, config)
    finally:
        os.kill(ranks[1], signal.SIGKILL)
    assert statuses_of(ranks) == ([1, -signal.SIGKILL] if writing else [0, 0])
    return writing


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_the_middle_of_a_file(material: Material, figures: Figures, tmp_path: Path) -> None:
    model = {"from_scratch": WIDE}
    half = material.config(tmp_path / "half", steps=STEPS // 2, model=model)
    assert run_ranks(half) == [0, 0]

    def second_half(name: str) -> RunConfig:
        return material.config(Path(shutil.copytree(half.run_dir, tmp_path / name)), model=model)

    whole = second_half("whole")
    assert run_ranks(whole) == [0, 0]
    undisturbed = weights_sha256(whole)
    used = 0
    for name in FILES:
        # On a busy machine it may be through before it is looked at again.
        for attempt in range(MOST_TRIES):
            config = second_half(f"{name}-{attempt}")
            if kill_while_writing(config, name):
                used += resumes_from_a_whole_one(config, undisturbed)
                break
    assert used == len(FILES)
    figures.record("cut_off_save", half_files=len(FILES), whole_one_used_after_half_a_file=used)
