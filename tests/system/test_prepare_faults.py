"""Killed at any moment, out of disk, worked on by two: nothing is lost, and the next run makes the same bytes."""

import errno
import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path

import pytest

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.config.recipe import Recipe
from megaslm.dataset.manifest import MANIFEST
from megaslm.errors import DataError, MegaSLMError
from megaslm.files import UNFINISHED
from megaslm.jobs.progress import read_progress
from megaslm.preparing.prepare import prepare
from tests.corpus import content, recipe_of, text, write_corpus
from tests.messages import Says, lines_with

ROOT = Path(__file__).resolve().parents[2]
fork = multiprocessing.get_context("fork")


def markers(output: Path) -> dict[str, int]:
    """The tasks that are done, with the time at which each was."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob(".prepare/task-*.json")}


def test_killed_at_ten_random_points_it_makes_the_same_bytes(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    recipe, output, points = recipe_of(corpus), tmp_path / "dataset", random.Random(4)
    done: dict[str, int] = {}
    kills = 0
    while True:
        process = fork.Process(target=prepare, args=(recipe, output), kwargs={"workers": 1})
        process.start()
        process.join(points.uniform(0.02, 0.5) if kills < 10 else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            if not (output / MANIFEST).exists():
                assert done.items() <= markers(output).items(), "a finished task was done again"
                done = markers(output)
            continue
        assert process.exitcode == 0
        assert content(output) == content(dataset)
        if kills == 10:
            break
        shutil.rmtree(output)
        done = {}


@pytest.mark.slow
def test_killed_with_its_workers_it_makes_the_same_bytes(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    with _command(recipe_of(corpus), tmp_path, "--workers", "2", start_new_session=True) as process:
        _wait_until(lambda: bool(markers(output)) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGKILL)
    prepare(recipe_of(corpus), output, workers=1)
    assert content(output) == content(dataset)


@pytest.mark.slow
def test_killed_alone_it_takes_its_workers_along(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    with _command(recipe_of(corpus), tmp_path, "--workers", "2") as process:
        _wait_until(lambda: bool(markers(output)) or process.poll() is not None)
        family = _descendants(process.pid)
        assert len(family) >= 3
        process.kill()
    prepare(recipe_of(corpus), output, workers=1)
    assert content(output) == content(dataset)
    _wait_until(lambda: not any(_is_alive(pid) for pid in family))


def test_a_worker_that_dies_is_replaced_and_its_task_done_again(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    victims: list[int] = []

    def kill_one() -> None:
        _wait_until(lambda: len(markers(output)) >= 2 and bool(_workers()))
        victims.append(_workers()[0])
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    prepare(recipe_of(corpus), output, workers=2)
    killer.join()
    assert victims
    assert content(output) == content(dataset)


def test_a_task_that_kills_its_workers_is_left_and_named_and_the_others_are_done(tmp_path: Path) -> None:
    # A file that cannot be divided makes the first task a long one, in which a kill is never too late.
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "clean" / "0.jsonl").unlink()
    with gzip.open(corpus / "clean" / "0.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text(seed), "book": f"long {seed}"}) + "\n" for seed in range(2_000))
    recipe, output, poison = recipe_of(corpus), tmp_path / "dataset", "00000"
    deaths: list[int] = []
    with (
        _killing(lambda: [pid for pid in _at_task(output, poison) if pid not in deaths], deaths),
        pytest.raises(MegaSLMError) as caught,
    ):
        prepare(recipe, output, workers=2)
    assert lines_with(str(caught.value), "3 times", "task 0: ", "/clean/0.jsonl.gz")
    assert not isinstance(caught.value, DataError)
    assert len(deaths) == 3
    done = markers(output)
    progress = read_progress(output / ".prepare")
    assert progress is not None
    assert f"task-{poison}.json" not in done
    assert (progress.tasks_done, progress.tasks_left) == (len(done), 1) == (progress.tasks - 1, 1)
    # What killed them is no more: the next run tries again, and does what is left.
    prepare(recipe, output, workers=2)
    undisturbed = tmp_path / "undisturbed"
    prepare(recipe, undisturbed, workers=2)
    assert content(output) == content(undisturbed)


def test_workers_that_die_whatever_they_do_end_the_run(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")})
    with _killing(_workers, []), pytest.raises(MegaSLMError, match="died") as caught:
        prepare(recipe, tmp_path / "dataset", workers=2)
    assert not isinstance(caught.value, DataError)


@contextmanager
def _killing(victims: Callable[[], list[int]], killed: list[int]) -> Iterator[None]:
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.001):
            for pid in victims():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def _at_task(output: Path, task: str) -> list[int]:
    """The process that is at a task."""
    try:
        *_, last = (output / ".prepare" / f"task-{task}.tries").read_text().split() or ["0"]
    except FileNotFoundError:
        return []
    return [int(last)] if _is_alive(int(last)) else []


def test_a_folder_that_another_process_works_in_is_refused(
    corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    recipe, output = recipe_of(corpus), tmp_path / "dataset"
    process = fork.Process(target=prepare, args=(recipe, output), kwargs={"workers": 1})
    process.start()
    try:
        _wait_until(lambda: bool(markers(output)))
        os.kill(process.pid or 0, signal.SIGSTOP)
        with pytest.raises(DataError) as refused:
            prepare(recipe, output, workers=1)
        says(refused, output)
    finally:
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join()
    assert process.exitcode == 0
    assert content(output) == content(dataset)


def test_what_a_kill_leaves_half_written_is_done_again(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    """A part with its name but no marker, one half written, a marker half written."""
    output, recipe = tmp_path / "dataset", recipe_of(corpus)
    process = fork.Process(target=prepare, args=(recipe, output), kwargs={"workers": 1})
    process.start()
    _wait_until(lambda: len(markers(output)) >= 3)
    process.kill()
    process.join()
    (output / ".prepare" / "task-00001.json").unlink()
    (output / ".prepare" / f"{UNFINISHED}task-00001.json").write_text('{"parts": [{"spl')
    parts = sorted((output / "train" / "clean").glob("part-*"))
    half = parts[0].with_name(f"{UNFINISHED}part-00003")
    shutil.copytree(parts[0], half, dirs_exist_ok=True)
    (half / "index.json").unlink()
    prepare(recipe, output, workers=1)
    assert content(output) == content(dataset)


@pytest.fixture
def namespace() -> list[str]:
    """A command before others that lets them mount what they alone see."""
    command = ["unshare", "--map-root-user", "--mount"]
    try:
        usable = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=20).returncode == 0
    except FileNotFoundError:
        usable = False
    if not usable:
        pytest.skip("this user may not mount a file system in a namespace")
    return command


FULL_DISK = """
set -u
mount -t tmpfs -o size=4m tmpfs "$1/full"
"$2" -m megaslm prepare "$1/recipe.yaml" "$1/full/dataset" --workers 1; echo "status $?"
ls "$1/full/dataset/.prepare" | grep -c 'task-.*json$'
mount -o remount,size=64m "$1/full"
"$2" -m megaslm prepare "$1/recipe.yaml" "$1/full/dataset" --workers 1 > /dev/null; echo "status $?"
cp -r "$1/full/dataset" "$1/mended"
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing(dataset: Path, tmp_path: Path, namespace: list[str]) -> None:
    records = "".join(json.dumps({"text": text(seed)}) + "\n" for seed in range(20_000))
    (tmp_path / "large.jsonl").write_text(records, encoding="utf-8")
    source = {"domain": "words", "reader": "jsonl", "paths": [str(tmp_path / "large.jsonl")]}
    tokenizer = {"huggingface": str(dataset / "tokenizer")}
    recipe = recipe_of(tmp_path, sources=[source], tokenizer=tokenizer, part_bytes=500_000, shard_bytes=200_000)
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json(), encoding="utf-8")
    (tmp_path / "full").mkdir()
    result = subprocess.run(
        [*namespace, "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    first, kept, second = _statuses(result.stdout)
    assert first == 1, result.stderr
    assert lines_with(result.stderr, "MegaSLMError", os.strerror(errno.ENOSPC))
    assert kept >= 1
    assert second == 0, result.stderr
    prepare(recipe, tmp_path / "undisturbed", workers=1)
    assert content(tmp_path / "mended") == content(tmp_path / "undisturbed")


def _statuses(printed: str) -> tuple[int, int, int]:
    """Of the first run, the tasks that it finished, and the status of the second run."""
    lines = printed.splitlines()
    first, second = (number for number, line in enumerate(lines) if line.startswith("status "))
    return int(lines[first].split()[1]), int(lines[first + 1]), int(lines[second].split()[1])


class _command:
    """`megaslm prepare` as a process of its own."""

    def __init__(self, recipe: Recipe, folder: Path, *options: str, start_new_session: bool = False) -> None:
        (folder / "recipe.yaml").write_text(recipe.model_dump_json(), encoding="utf-8")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "megaslm",
                "prepare",
                str(folder / "recipe.yaml"),
                str(folder / "dataset"),
                *options,
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=start_new_session,
        )

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _workers() -> list[int]:
    """The processes that this one's fork server has started."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return [] if server is None else _children(server)


def _descendants(pid: int) -> list[int]:
    return [each for child in _children(pid) for each in (child, *_descendants(child))]


def _children(pid: int) -> list[int]:
    return [child for child, parent in _parents() if parent == pid]


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if after_name[0] != "Z":
            yield int(folder.name), int(after_name[1])


def _is_alive(pid: int) -> bool:
    return any(pid == each for each, _ in _parents())
