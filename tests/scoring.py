"""Scoring jobs on toy datasets, in ranks that start in a moment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from megaslm.config.schema import Architecture
from megaslm.dataset.manifest import BESIDE_ROWS
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.scoring.job import score
from megaslm.scoring.request import ScoreRequest, ScoreSettings
from tests.corpus import content
from tests.forks import fork, fork_ranks, statuses_of
from tests.toy import EOS_ID, SHAPE, Unsharded, make_tokenizer

NOTES = ".score/.derived"


def make_reference(folder: Path, *, tokenizer: Path | None = None, **shape: int) -> PreTrainedModel:
    """A model with random weights, large enough that losses differ, and a tokenizer; gives the model."""
    architecture = Architecture.model_validate({**SHAPE, **shape})
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=5, standard_deviation=0.3, sharding=Unsharded())
    if tokenizer is None:
        make_tokenizer(folder)
    else:
        shutil.copytree(tokenizer, folder)
    lm.save_pretrained(folder)
    return lm


def task_of(reference: Path, dataset: str | Path, output: str | Path, **settings: int | bool | str) -> ScoreRequest:
    """A task with small batches."""
    return ScoreRequest(reference, dataset, output, ScoreSettings(**{"batch_rows": 4, **settings}))  # type: ignore[arg-type]


def start(world_size: int, task: ScoreRequest) -> list[int]:
    """Starts so many ranks of a job."""

    def run() -> None:
        torch.set_num_threads(1)
        score(task)

    return fork_ranks(world_size, run)


def run_job(world_size: int, task: ScoreRequest) -> None:
    """Runs a job to its end."""
    assert statuses_of(start(world_size, task)) == [0] * world_size


def fail(world_size: int, task: ScoreRequest, status: int, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs a job that ends with this status on all ranks; gives what they said."""
    capfd.readouterr()
    assert statuses_of(start(world_size, task)) == [status] * world_size
    return capfd.readouterr().err


def failing(run: Callable[[], object], status: int, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs something in a process of its own, which ends with this status; gives what it said."""
    capfd.readouterr()
    assert statuses_of([fork(lambda: _discard(run()))]) == [status]
    return capfd.readouterr().err


def rows_of(scored: Path) -> dict[str, bytes]:
    """Every file of a scored dataset but those that say how it was made."""
    return {name: found for name, found in content(scored).items() if name not in BESIDE_ROWS}


def notes(scored: Path) -> dict[str, int]:
    """The parts that an unfinished job has done, with the time at which each was."""
    return {path.name: path.stat().st_mtime_ns for path in (scored / NOTES).glob("task-*.json")}


def scores(scored: Path) -> list[tuple[str, str, str]]:
    """The parts that scores.json tells of."""
    summary = json.loads((scored / "scores.json").read_text(encoding="utf-8"))
    return [(part["split"], part["domain"], part["part"]) for part in summary["parts"]]


def loss_counts(scored: Path) -> list[str]:
    """The counts of each domain's losses in scores.json, none of them missing."""
    summary = json.loads((scored / "scores.json").read_text(encoding="utf-8"))
    return [domain["loss_counts"] for domain in summary["domains"] if domain["loss_counts"] is not None]


def _discard(_: object) -> None:
    return
