"""Jobs whose workers die: by a signal, by the kernel for want of memory, over one task again and again."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from megaslm.config.recipe import Recipe
from megaslm.errors import MegaSLMError
from megaslm.preparing.prepare import prepare
from tests.corpus import content, recipe_of, text
from tests.faults.figures import Figures
from tests.messages import Says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CGROUP = Path("/sys/fs/cgroup/memory")
TASKS = 12
REDRAWN_WITHIN_SECONDS = 1.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("corpus")
    words = "\n\n".join(text(seed) for seed in range(1000))
    for number in range(TASKS):
        (folder / f"{number:02}.txt").write_text(words, encoding="utf-8")
    sources = [{"domain": "words", "reader": "text", "paths": [str(folder / "*.txt")]}]
    part_bytes = len(words.encode())
    trained = folder / "trained"
    prepare(recipe_of(folder, sources=sources, part_bytes=part_bytes), trained, workers=2)
    tokenizer = {"huggingface": str(trained / "tokenizer")}
    return recipe_of(folder, sources=sources, part_bytes=part_bytes, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def expected(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("expected") / "dataset"
    prepare(recipe, output, workers=2)
    return content(output)


def at_work(output: Path) -> dict[str, int]:
    """The process that is at each task, or has died over it."""
    found = {}
    for path in (output / ".prepare").glob("task-*.tries"):
        with suppress(FileNotFoundError, IndexError):
            found[path.stem] = int(path.read_text().split()[-1])
    return found


@contextmanager
def meanwhile(do: Callable[[threading.Event], None]) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=do, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_worker_is_killed(recipe: Recipe, expected: dict[str, bytes], figures: Figures, tmp_path: Path) -> None:
    output, seconds = tmp_path / "dataset", []

    def kill(over: threading.Event) -> None:
        while not (tasks := at_work(output)) and not over.is_set():
            time.sleep(0.002)
        task, pid = next(iter(tasks.items()))
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        while at_work(output).get(task, pid) == pid and not over.is_set():
            time.sleep(0.002)
        seconds.append(time.monotonic() - killed_at)

    with meanwhile(kill):
        prepare(recipe, output, workers=2)
    assert content(output) == expected
    assert seconds[0] < REDRAWN_WITHIN_SECONDS
    figures.record("job_worker_killed", redrawn_seconds=seconds[0])


@pytest.mark.skipif(
    not os.access(CGROUP / "cgroup.procs", os.W_OK), reason="needs control groups for memory, version 1"
)
def test_a_worker_runs_out_of_memory(
    recipe: Recipe, expected: dict[str, bytes], figures: Figures, tmp_path: Path
) -> None:
    output, group = tmp_path / "dataset", CGROUP / f"megaslm-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("1000000")

    def starve(over: threading.Event) -> None:
        while not (tasks := at_work(output)) and not over.is_set():
            time.sleep(0.002)
        # What it has so far is not counted, but what it asks for from here on.
        (group / "cgroup.procs").write_text(str(next(iter(tasks.values()))))

    try:
        with meanwhile(starve):
            prepare(recipe, output, workers=2)
        (killed,) = [
            int(line.split()[1])
            for line in (group / "memory.oom_control").read_text().splitlines()
            if line.startswith("oom_kill ")
        ]
    finally:
        group.rmdir()
    assert killed == 1
    assert content(output) == expected
    figures.record("job_worker_out_of_memory", killed=killed)


def test_a_task_kills_whoever_does_it(
    recipe: Recipe, expected: dict[str, bytes], figures: Figures, tmp_path: Path, says: Says
) -> None:
    output, poison = tmp_path / "dataset", "task-00004"
    killed: list[int] = []

    def kill(over: threading.Event) -> None:
        while not over.wait(0.002):
            pid = at_work(output).get(poison)
            if pid is not None and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    with meanwhile(kill), pytest.raises(MegaSLMError) as refused:
        prepare(recipe, output, workers=2)
    says(refused, "3 times", "task 4: ", "04.txt", "byte 0")
    done = len(list((output / ".prepare").glob("task-*.json")))
    assert (len(killed), done) == (3, TASKS - 1)
    prepare(recipe, output, workers=2)
    assert content(output) == expected
    figures.record("job_poisonous_task", deaths=len(killed), done=done, tasks=TASKS)
