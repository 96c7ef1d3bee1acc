"""Which weights of targets a configuration may ask for."""

from pathlib import Path
from typing import Any

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.config.weighting import WeightSection
from megaslm.errors import ConfigError
from megaslm.training.changes import may_change
from tests.messages import Says


def loaded(run_file: Path, *settings: str) -> RunConfig:
    return load(RunConfig, run_file, [f"slm.{setting}" for setting in settings]).value


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (("slm.weight", "temperature"), ("weight.by=sigmoid",)),
        (("slm.weight.temperature",), ("weight.by=sigmoid", "weight.temperature=0")),
        (("slm.weight.temperature",), ("weight.by=sigmoid", "weight.temperature=.nan")),
        (("slm.weight", "bound_nats"), ("weight.by=signed", "weight.negative=0.1")),
        (("slm.weight.negative",), ("weight.by=signed", "weight.negative=2", "weight.bound_nats=5")),
        (("slm.weight.power",), ("weight.by=probability", "weight.power=-1")),
        (("slm.weight.top_tokens",), ("weight.by=entropy", "weight.top_tokens=1")),
        (("slm.weight.by", "hard"), ("weight.by=soft",)),
        (("slm.weight", "power", "temperature"), ("weight.by=column", "weight.power=2", "weight.temperature=1")),
        (("granularity span",), ("weight.by=sigmoid", "weight.temperature=1", "granularity=span")),
        (("criterion random",), ("weight.by=sigmoid", "weight.temperature=1", "criterion=random")),
        (("keep_ratio 1",), ("weight.by=signed", "weight.negative=0.1", "weight.bound_nats=5", "keep_ratio=1")),
    ],
    ids=[
        *("no temperature", "temperature 0", "temperature NaN", "no bound", "negative 2", "power -1", "one token"),
        *("unknown", "unused", "spans", "random", "nothing left out"),
    ],
)
def test_what_has_no_meaning_is_refused(
    run_file: Path, facts: tuple[str, ...], settings: tuple[str, ...], says: Says
) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(run_file, *settings)
    says(refused, *facts)


@pytest.mark.parametrize(
    "weight",
    [
        {"by": "hard"},
        {"by": "sigmoid", "temperature": 0.5, "center_nats": -1.0},
        {"by": "probability", "power": 0.0},
        {"by": "entropy", "power": 2.0, "top_tokens": 50},
        {"by": "signed", "negative": 0.1, "bound_nats": 8.0},
        {"by": "column"},
        {"by": "column", "bound_nats": 8.0},
    ],
    ids=str,
)
def test_what_has_one_is_read(run_file: Path, weight: dict[str, Any]) -> None:
    found = loaded(run_file, *(f"weight.{name}={value}" for name, value in weight.items())).slm.weight
    assert found == WeightSection.model_validate(weight)


def test_a_cap_leaves_targets_that_can_be_unlearned(run_file: Path) -> None:
    settings = ("weight.by=signed", "weight.negative=0.1", "weight.bound_nats=5", "keep_ratio=1", "max_ref_loss=6")
    assert loaded(run_file, *settings).slm.weight.by == "signed"


def test_a_run_keeps_its_weights(run_file: Path) -> None:
    config = loaded(run_file)
    for name in WeightSection.model_fields:
        assert may_change(f"slm.weight.{name}", config) == "never"
