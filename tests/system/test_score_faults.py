"""Killed at any moment, stopped, out of disk, worked on by two, fed with corruption: every row is scored exactly
once."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.dataset.manifest import MANIFEST
from megaslm.inspect.verify import verify
from tests.forks import statuses_of, wait_until
from tests.launched import ROOT
from tests.messages import Says, line_with, lines_with
from tests.scoring import NOTES, fail, make_reference, notes, rows_of, run_job, scores, start, task_of
from tests.toy import make_dataset

PARTS = {("train", "a"): [60, 35, 50, 20, 44], ("train", "b"): [70, 61], ("heldout", "a"): [15]}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "model"
    make_reference(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "dataset"
    make_dataset(folder, PARTS)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def undisturbed(reference: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank makes of it when nothing happens."""
    scored = tmp_path_factory.mktemp("undisturbed") / "scored"
    run_job(1, task_of(reference, tokens, scored))
    assert verify(scored).problems == ()
    return scored


def test_killed_at_ten_random_points_and_finished_with_another_number_of_ranks(
    reference: Path, tokens: Path, undisturbed: Path, tmp_path: Path
) -> None:
    scored, points, kills = tmp_path / "scored", random.Random(5), 0
    task = task_of(reference, tokens, scored)
    done: dict[str, int] = {}
    while kills < 10:
        ranks = start(points.choice((1, 2, 3)), task)
        time.sleep(points.uniform(0.02, 0.7))
        # One rank alone, as when a machine fails, or all of them.
        for victim in ranks if points.random() < 0.5 else [points.choice(ranks)]:
            os.kill(victim, signal.SIGKILL)
        time.sleep(0.02)
        os.killpg(ranks[0], signal.SIGKILL)
        statuses_of(ranks)
        if (scored / MANIFEST).exists():
            # The next run removes what a kill after the manifest has left, and no more.
            run_job(1, task)
            assert rows_of(scored) == rows_of(undisturbed)
            shutil.rmtree(scored)
            done = {}
            continue
        kills += 1
        assert done.items() <= notes(scored).items(), "a part was scored again"
        done = notes(scored)
    run_job(points.choice((2, 3)), task)
    assert rows_of(scored) == rows_of(undisturbed)
    assert scores(scored) == scores(undisturbed)
    assert not (scored / ".score").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_work_of_a_rank_that_dies_is_done_by_the_others(
    reference: Path, tokens: Path, undisturbed: Path, tmp_path: Path, victim: int
) -> None:
    scored = tmp_path / "scored"
    ranks = start(2, task_of(reference, tokens, scored))
    wait_until(lambda: bool(notes(scored)))
    os.kill(ranks[victim], signal.SIGKILL)
    expected = [0, 0]
    expected[victim] = -signal.SIGKILL
    assert statuses_of(ranks) == expected
    assert rows_of(scored) == rows_of(undisturbed)
    assert scores(scored) == scores(undisturbed)


def test_a_half_written_part_is_written_again(reference: Path, tokens: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A part without its note, one half written, and a kill between the manifest and the tidying up."""
    scored = tmp_path / "scored"
    task = task_of(reference, tokens, scored)
    ranks = start(1, task)
    wait_until(lambda: len(notes(scored)) >= 2)
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)
    noted = sorted(notes(scored))
    (scored / NOTES / noted[0]).unlink()
    _, split, domain, part = noted[0].removesuffix(".json").replace("task-", "task--").split("--")
    shard = next((scored / ".score" / split / domain / part).glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:100])
    run_job(2, task)
    assert rows_of(scored) == rows_of(undisturbed)

    (scored / NOTES).mkdir(parents=True)
    run_job(1, task)
    assert rows_of(scored) == rows_of(undisturbed)


def test_two_jobs_on_one_output(
    reference: Path, tokens: Path, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    scored = tmp_path / "scored"
    ranks = start(2, task_of(reference, tokens, scored))
    wait_until(lambda: bool(notes(scored)))
    os.killpg(ranks[0], signal.SIGSTOP)
    try:
        says(fail(1, task_of(reference, tokens, scored), 2, capfd), f"{scored}: ")
    finally:
        os.killpg(ranks[0], signal.SIGCONT)
    assert statuses_of(ranks) == [0, 0]
    assert rows_of(scored) == rows_of(undisturbed)


def test_told_to_stop_all_ranks_stop_and_may_be_requeued(
    reference: Path, tokens: Path, undisturbed: Path, tmp_path: Path
) -> None:
    scored = tmp_path / "scored"
    task = task_of(reference, tokens, scored)
    ranks = start(2, task)
    wait_until(lambda: bool(notes(scored)))
    # Only one is told: the other follows.
    os.kill(ranks[1], signal.SIGTERM)
    assert statuses_of(ranks) == [75, 75]
    assert not (scored / MANIFEST).exists()
    run_job(1, task)
    assert rows_of(scored) == rows_of(undisturbed)


def test_damage_that_one_rank_finds_ends_all(
    reference: Path, tokens: Path, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    corrupt = Path(shutil.copytree(tokens, tmp_path / "tokens"))
    shard = next((corrupt / "train" / "a" / "part-00001").glob("*.mds"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    scored = tmp_path / "scored"
    said = fail(2, task_of(reference, corrupt, scored), 2, capfd)
    says.without_numbers(line_with(said, shard), "xxh3_64")
    assert not (scored / MANIFEST).exists()
    shard.write_bytes(content)
    run_job(2, task_of(reference, corrupt, scored))
    assert rows_of(scored) == rows_of(undisturbed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    reference: Path, tokens: Path, tmp_path: Path, value: float, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    broken = Path(shutil.copytree(reference, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 2] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    said = fail(1, task_of(broken, tokens, tmp_path / "scored"), 2, capfd)
    says(said, f"{broken}: ", "model.layers.1.mlp.down_proj.weight", " 1 of ")


def test_losses_that_are_not_finite_are_named_by_row(
    reference: Path, tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    """Weights may be finite and yet too large to compute with."""
    broken = Path(shutil.copytree(reference, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].fill_(3e38)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    said = fail(1, task_of(broken, tokens, tmp_path / "scored"), 1, capfd)
    says(line_with(said, "train/b/part-00000, row 0 "))
    assert not list((tmp_path / "scored" / ".score").glob("*/*/*"))


def test_an_incomplete_reference_is_refused_before_anything_is_written(
    reference: Path, tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    broken = Path(shutil.copytree(reference, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    says(fail(1, task_of(broken, tokens, tmp_path / "scored"), 2, capfd), f"{weights}: ")
    assert not (tmp_path / "scored").exists()


FULL_DISK = """
set -u
mount -t tmpfs -o size=2m tmpfs "$1/full"
"$2" -m megaslm score --reference "$1/model" --batch-rows 4 "$1/tokens" "$1/full/scored"; echo "status $?"
ls "$1/full/scored/.score/.derived" | grep -c 'task-.*json$'
mount -o remount,size=64m "$1/full"
"$2" -m megaslm score --reference "$1/model" --batch-rows 4 "$1/tokens" "$1/full/scored" > /dev/null; echo "status $?"
cp -r "$1/full/scored" "$1/mended"
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing(reference: Path, tmp_path: Path) -> None:
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False, timeout=20).returncode != 0:
        pytest.skip("this user may not mount a file system in a namespace")
    make_dataset(tmp_path / "tokens", {("train", "a"): [9000, 9000, 9000, 9000]})
    shutil.copytree(reference, tmp_path / "model")
    (tmp_path / "full").mkdir()
    result = subprocess.run(
        [*namespace, "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    first, second = (number for number, line in enumerate(lines) if line.startswith("status "))
    assert lines[first] == "status 1", result.stderr
    assert lines_with(result.stderr, "MegaSLMError: ", os.strerror(errno.ENOSPC))
    assert int(lines[first + 1]) >= 1
    assert lines[second] == "status 0", result.stderr
    run_job(1, task_of(reference, tmp_path / "tokens", tmp_path / "undisturbed"))
    assert rows_of(tmp_path / "mended") == rows_of(tmp_path / "undisturbed")
