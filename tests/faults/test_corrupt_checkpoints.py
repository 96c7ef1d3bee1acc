"""A flipped byte, a truncated or a missing file in a checkpoint: refused by its hash, and the one before is used."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.errors import CheckpointError
from megaslm.training.checkpoints.store import complete_checkpoints, find_corruption
from tests.faults.figures import Figures
from tests.faults.runs import Material, run_ranks, steps_made, weights_sha256
from tests.messages import Says, line_with

DAMAGES = 1000


def flip_a_byte(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def is_refused(checkpoint: Path, corrupt: str) -> bool:
    """Whether the file, or the list itself, is named as what is wrong."""
    try:
        found = find_corruption(checkpoint)
    except CheckpointError as error:
        return corrupt in str(error)
    return [corruption.name for corruption in found] == [corrupt]


def newest(config: RunConfig) -> Path:
    return complete_checkpoints(Path(config.run_dir) / "checkpoints")[-1].folder


@pytest.mark.slow
@pytest.mark.parametrize("corruption", [flip_a_byte, truncate, remove])
def test_no_damage_goes_unnoticed(
    corruption: Callable[[Path, random.Random], None], undisturbed_run: RunConfig, figures: Figures, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(newest(undisturbed_run), tmp_path / "step-00000008"))
    assert find_corruption(checkpoint) == []
    files, chance, refused = sorted(checkpoint.iterdir()), random.Random(6), 0
    for _ in range(DAMAGES):
        path = chance.choice(files)
        content = path.read_bytes()
        corruption(path, chance)
        refused += is_refused(checkpoint, path.name)
        path.write_bytes(content)
    assert find_corruption(checkpoint) == []
    assert refused == DAMAGES
    figures.record("corruption", **{f"refused_{corruption.__name__}": refused, "tries": DAMAGES})


def test_a_run_resumes_from_the_checkpoint_before_a_corrupt_one(
    undisturbed_run: RunConfig,
    material: Material,
    undisturbed: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    says: Says,
) -> None:
    config = material.config(Path(shutil.copytree(undisturbed_run.run_dir, tmp_path / "run")))
    corrupt = newest(config) / "weights-00001.safetensors"
    flip_a_byte(corrupt, random.Random(1))
    content = corrupt.read_bytes()
    capfd.readouterr()
    assert run_ranks(config) == [0, 0]
    said = capfd.readouterr().out
    says(line_with(said, "warning: ", corrupt.parent, corrupt.name))
    assert steps_made(said) == [5, 6, 7, 8]
    assert corrupt.read_bytes() != content, "the step's own checkpoint takes the place of the corrupt one"
    assert weights_sha256(config) == undisturbed
