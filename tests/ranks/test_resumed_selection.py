"""Exact selection over several micro-steps is stopped and resumed, in each of its ways or in another one.

Every run ends as the uninterrupted one does that makes a second pass: with equal records of its steps, weights and
moments, bit for bit.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.training import exact_way, train
from megaslm.training.checkpoints.file_list import Described, read_file_list
from megaslm.training.checkpoints.store import complete_checkpoints
from tests.forks import fork_ranks, statuses_of
from tests.pairwise import pairwise
from tests.toy import make_dataset, run_config
from tests.training import LENGTHENED, changed, run_training, with_steps

STEPS_BEFORE = 3
WAYS: dict[str, dict[str, dict[str, object]]] = {
    "second pass": {"slm": {"exact_by": "second_pass"}, "model": {"recompute": "none"}},
    "kept graphs": {"slm": {"exact_by": "kept_graphs"}, "model": {"recompute": "none"}},
    "kept layer inputs": {"slm": {"exact_by": "kept_graphs"}, "model": {"recompute": "full"}},
}


@dataclass(frozen=True)
class Case:
    stage: int
    world_size: int
    before: str
    after: str


CASES = pairwise([Case(*case) for case in product(range(4), (1, 2), WAYS, WAYS)], asdict)
QUICK = pairwise(CASES, asdict, together=1)

Uninterrupted = Callable[[int, int], Path]
"""Gives the folder of the run of a stage and a number of ranks."""


def six_steps(run: Path, dataset: Path, stage: int, **sections: dict[str, object]) -> RunConfig:
    """Six steps of 8 rows in micro-batches of 2, which select by their own loss."""
    config = run_config(
        run,
        dataset,
        train={"objective": "slm", "schedule": "constant", "micro_batch_rows": 2},
        slm={"criterion": "loss"},
        zero={"stage": stage},
    )
    return changed(config, **sections)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed-selection") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15], ("train", "b"): [30]})
    return folder


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    @cache
    def run_of(stage: int, world_size: int) -> Path:
        run = tmp_path_factory.mktemp("uninterrupted") / "run"
        run_training(six_steps(run, dataset, stage, **WAYS["second pass"]), world_size=world_size)
        return run

    return run_of


def steps_of(run: Path) -> list[dict[str, object]]:
    """What the run recorded of each step, but for its speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return [{name: value for name, value in step.items() if name != "tokens_per_second"} for step in steps]


def state_files(run: Path) -> dict[str, Described]:
    """Sizes and hashes of the files of weights and moments in the newest checkpoint."""
    files = read_file_list(complete_checkpoints(run / "checkpoints")[-1].folder)
    return {name: file for name, file in files.items() if name.endswith(".safetensors")}


def require_same_end(run: Path, other: Path) -> None:
    assert len(steps_of(run)) == 2 * STEPS_BEFORE
    assert steps_of(run) == steps_of(other)
    assert len(state_files(run)) >= 2
    assert state_files(run) == state_files(other)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id="-".join(map(str, asdict(case).values())), marks=[] if case in QUICK else pytest.mark.slow
        )
        for case in CASES
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    uninterrupted: Uninterrupted, dataset: Path, tmp_path: Path, case: Case
) -> None:
    run = tmp_path / "run"
    before = six_steps(run, dataset, case.stage, **WAYS[case.before])
    run_training(with_steps(before, STEPS_BEFORE), world_size=case.world_size)
    after = six_steps(run, dataset, case.stage, **WAYS[case.after])
    run_training(after, world_size=case.world_size, resume=True)
    require_same_end(run, uninterrupted(case.stage, case.world_size))


@contextmanager
def memory_left(bytes_of_ranks: tuple[int, ...]) -> Iterator[None]:
    """Ranks that start within find so much memory on their hosts."""
    read = exact_way.available_memory_bytes
    exact_way.available_memory_bytes = lambda: bytes_of_ranks[int(os.environ["RANK"])]
    yield
    exact_way.available_memory_bytes = read


LITTLE, MUCH = 0, 1 << 40
KEEPS, PASSES_TWICE = "keeps their graphs", "makes a second forward pass"


@pytest.mark.parametrize(
    ("stage", "ranks_before", "ranks_after"), [(3, (MUCH, MUCH), (MUCH, LITTLE)), (0, (LITTLE, MUCH), (MUCH, MUCH))]
)
def test_auto_takes_another_way_where_the_memory_has_changed(
    uninterrupted: Uninterrupted,
    dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    stage: int,
    ranks_before: tuple[int, ...],
    ranks_after: tuple[int, ...],
) -> None:
    """All ranks take the way of the one that has least memory."""
    run = tmp_path / "run"
    config = six_steps(run, dataset, stage)
    for ranks, part in ((ranks_before, with_steps(config, STEPS_BEFORE)), (ranks_after, config)):
        capfd.readouterr()
        with memory_left(ranks):
            processes = fork_ranks(2, lambda part=part: train.train(part, resume=True, allow_changed=LENGTHENED))
        assert statuses_of(processes) == [0, 0]
        said = capfd.readouterr().out
        assert (KEEPS in said, PASSES_TWICE in said) == (LITTLE not in ranks, LITTLE in ranks)
    require_same_end(run, uninterrupted(stage, 2))
