"""What is dumped loads back to the same configuration."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.config.selection import SlmSection
from megaslm.config.source import dump, parse_source

MakeRun = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("slm.keep_ratio=0.7", "train.lr=2e-5", "train.eps=1e-30"),
        ("slm.keep_ratio='0.123456789'",),
        ("run_dir='2e-5'", "data.train='no'", "data.domains=['true', '1_0', 'null', '~', '2024-01-01', 'a: b', ü]"),
        ("deepspeed_extra={comms_logger: {enabled: true, prof_ops: [a, 1, null]}}",),
        ("validation.sets.x={dataset: d, domains: []}", "model.from_scratch=null", "model.from_run=runs/base"),
    ],
)
def test_a_dumped_run_loads_equal(run_config: MakeRun, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = run_config(*overrides)
    path = tmp_path / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(RunConfig, path).value == config


@given(some.decimals(min_value="0.0001", max_value=1, places=9))
def test_every_keep_ratio_survives(ratio: Decimal) -> None:
    section = SlmSection(keep_ratio=ratio)
    assert SlmSection.model_validate(parse_source(dump(section), "dump").value) == section


@example("\x85")
@example("2e-5")
@given(some.text(some.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_every_text_survives(text: str) -> None:
    section = SlmSection(reference=text)
    assert SlmSection.model_validate(parse_source(dump(section), "dump").value) == section


def test_a_plain_ratio_is_written_plainly(run_config: MakeRun) -> None:
    assert "keep_ratio: 0.6\n" in dump(run_config())
