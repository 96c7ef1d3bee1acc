"""A disk that is full: where checkpoints lie, and where the log does."""

import errno
import os
import re
import signal
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.training.checkpoints.store import complete_checkpoints, find_corruption
from tests.faults.figures import Figures
from tests.faults.runs import STEPS, Material, records, run_ranks, start_ranks, steps_made, tokens_of, weights_sha256
from tests.faults.small_disk import fill, grow, small_disk
from tests.forks import statuses_of, wait_until
from tests.messages import lines_with

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system of limited size"),
]


MANY_STEPS = 20_000


def bytes_beside(checkpoints: Path, kept: Path) -> int:
    """The bytes in a folder of checkpoints that do not belong to one of them."""
    return sum(
        path.stat().st_size for path in checkpoints.rglob("*") if path.is_file() and not path.is_relative_to(kept)
    )


def bytes_of_a_checkpoint(run: RunConfig) -> int:
    newest = complete_checkpoints(Path(run.run_dir) / "checkpoints")[-1].folder
    return sum(path.stat().st_size for path in newest.iterdir())


def test_no_room_for_a_checkpoint(
    material: Material,
    undisturbed_run: RunConfig,
    undisturbed: str,
    figures: Figures,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = material.config(tmp_path / "run", checkpoint={"every_tokens": tokens_of(2), "max_failed_saves": 3})
    checkpoints = tmp_path / "run" / "checkpoints"
    # There is room for one and a half.
    with small_disk(checkpoints, kib=bytes_of_a_checkpoint(undisturbed_run) * 3 // 2 // 1024):
        assert run_ranks(config) == [1, 1]
        said = capfd.readouterr()
        (kept,) = complete_checkpoints(checkpoints)
        assert kept.step == 2
        assert find_corruption(kept.folder) == []
        bytes_left = bytes_beside(checkpoints, kept.folder)
        assert bytes_left == 0
        no_space = os.strerror(errno.ENOSPC)
        failed_saves = set(re.findall(rf"step (\d+): .*{no_space}", said.out + said.err))
        assert failed_saves == {"4", "6", "8"}
        assert lines_with(said.out, "warning: ", no_space)
        assert lines_with(said.err, "step 8: ", " 3 ", "--resume")
        made = [record["step"] for record in records(config)]
        assert made == list(range(1, STEPS + 1))
        grow(checkpoints, mib=64)
        assert run_ranks(config) == [0, 0]
        assert weights_sha256(config) == undisturbed
    figures.record(
        "full_disk",
        failed_saves=len(failed_saves),
        steps_made_meanwhile=len([step for step in made if step > kept.step]),
        bytes_left=bytes_left,
    )


def test_no_room_for_the_log(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Far more steps than it makes until it is told to stop: its only save comes when there is room again.
    config = material.config(tmp_path / "run", steps=MANY_STEPS, checkpoint={"every_tokens": tokens_of(MANY_STEPS)})
    said = ""

    def has_said(pattern: str) -> bool:
        nonlocal said
        said += "".join(capfd.readouterr())
        return re.search(pattern, said) is not None

    with small_disk(tmp_path / "run", kib=8 * 1024):
        ranks = start_ranks(config)
        wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(records(config)) >= 4)
        filler = fill(tmp_path / "run")
        # TensorBoard's larger records find the disk full first.
        wait_until(lambda: has_said("metrics.jsonl.*No space left on device"))
        filler.unlink()
        os.kill(ranks[0], signal.SIGTERM)
        assert statuses_of(ranks) == [75, 75]
        said += "".join(capfd.readouterr())
        made, logged = steps_made(said), [record["step"] for record in records(config)]
    assert made == list(range(1, len(made) + 1))
    assert len(made) < MANY_STEPS
    assert logged == made
    figures.record("full_disk", log_lines_lost=len(made) - len(logged))
