"""Which distillation a configuration may ask for."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.config.weighting import DistillSection
from megaslm.errors import ConfigError
from megaslm.training.changes import may_change
from tests.messages import Says


def loaded(run_file: Path, *settings: str) -> RunConfig:
    return load(RunConfig, run_file, [f"slm.{setting}" for setting in settings]).value


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (("slm.distill.temperature",), ("distill.temperature=0",)),
        (("slm.distill.temperature",), ("distill.temperature=-2",)),
        (("slm.distill.temperature",), ("distill.temperature=.nan",)),
        (("slm.distill.weight",), ("distill.weight=1.5",)),
        (("slm.distill.on",), ("distill.on=all",)),
        (("weight.by entropy", "distill.weight = 0.5"), ("distill.weight=0.5", "weight.by=entropy")),
        (("keep_ratio 1",), ("distill.weight=0.5", "distill.on=unselected", "keep_ratio=1")),
    ],
    ids=["temperature 0", "negative temperature", "NaN", "weight 1.5", "unknown", "weights", "nothing left out"],
)
def test_what_has_no_meaning_is_refused(
    run_file: Path, facts: tuple[str, ...], settings: tuple[str, ...], says: Says
) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(run_file, *settings)
    says(refused, *facts)


def test_without_a_share_nothing_is_refused(run_file: Path) -> None:
    settings = ("distill.on=unselected", "keep_ratio=1", "weight.by=entropy")
    assert not loaded(run_file, *settings).slm.distills


def test_what_has_a_meaning_is_read(run_file: Path) -> None:
    slm = loaded(run_file, "distill.weight=0.5", "distill.temperature=2", "distill.on=unselected").slm
    assert slm.distill == DistillSection(weight=0.5, temperature=2.0, on="unselected")
    assert slm.distills
    assert slm.trains_unselected
    assert not loaded(run_file, "distill.weight=0.5").slm.trains_unselected


def test_a_run_keeps_its_distillation(run_file: Path) -> None:
    config = loaded(run_file)
    for name in DistillSection.model_fields:
        assert may_change(f"slm.distill.{name}", config) == "never"
