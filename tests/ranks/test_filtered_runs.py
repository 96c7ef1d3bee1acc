"""Runs whose backward pass leaves tokens out of the upper layers (`slm.backward: filtered`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.training import filter_watch
from tests.ranks.test_resumed_selection import WAYS, require_same_end, six_steps, steps_of
from tests.toy import make_dataset
from tests.training import are_equal, changed, last_weights, run_training, with_steps

STEPS_BEFORE = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filtered") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15], ("train", "b"): [30]})
    return folder


@pytest.fixture(autouse=True)
def compared_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks compare both gradients in every second step."""
    monkeypatch.setattr(filter_watch, "COMPARED_EVERY_STEPS", 2)


def filtered(run: Path, dataset: Path, stage: int, way: str, *, least_cosine: float = 0.0) -> RunConfig:
    settings = {"backward": "filtered", "filtered_layers": 0.5, "least_cosine": least_cosine}
    exact = six_steps(run, dataset, stage, **WAYS[way])
    return changed(exact, slm=settings, model={"recompute": "full"})


def cosines_of(run: Path) -> list[object]:
    return [step["backward_cosine"] for step in steps_of(run)]


@pytest.fixture
def exact(dataset: Path, tmp_path: Path) -> Iterator[Path]:
    run_training(six_steps(tmp_path / "exact", dataset, 2, **WAYS["kept layer inputs"]), world_size=2)
    return tmp_path / "exact"


def test_below_the_least_cosine_a_run_is_exact(exact: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_training(filtered(run, dataset, 2, "kept layer inputs", least_cosine=0.999999), world_size=2)
    assert are_equal(last_weights(run), last_weights(exact))
    found = cosines_of(run)
    assert all(isinstance(cosine, float) and 0 < cosine < 0.999999 for cosine in found[::2])
    assert found[1::2] == cosines_of(exact)[1::2] == [None] * 3


def test_above_it_the_steps_between_comparisons_leave_tokens_out(exact: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_training(filtered(run, dataset, 2, "kept layer inputs"), world_size=2)
    norms, exact_norms = ([step["gradient_norm"] for step in steps_of(folder)] for folder in (run, exact))
    assert norms[0] == exact_norms[0]
    assert norms[1] != exact_norms[1]
    assert not are_equal(last_weights(run), last_weights(exact))


@pytest.mark.parametrize(("stage", "world_size"), [(3, 2), (0, 1)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(dataset: Path, tmp_path: Path, stage: int, world_size: int) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_training(filtered(whole, dataset, stage, "kept layer inputs"), world_size=world_size)
    config = filtered(run, dataset, stage, "second pass")
    run_training(with_steps(config, STEPS_BEFORE), world_size=world_size)
    run_training(config, world_size=world_size, resume=True)
    require_same_end(run, whole)
