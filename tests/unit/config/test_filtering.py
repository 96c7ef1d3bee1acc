"""Which backward passes without unselected tokens a configuration may ask for."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from tests.messages import Says

FILTERED = ("slm.backward=filtered", "model.recompute=full")


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (("slm.backward", "model.recompute = none", "full"), ("slm.backward=filtered",)),
        (("slm.filtered_layers",), (*FILTERED, "slm.filtered_layers=0")),
        (("slm.least_cosine",), (*FILTERED, "slm.least_cosine=1")),
        (
            ("weight.by signed",),
            (*FILTERED, "slm.weight={by: signed, negative: 0.1, bound_nats: 5}"),
        ),
    ],
    ids=["no recomputation", "no layer", "a cosine of 1", "trains others"],
)
def test_what_has_no_meaning_is_refused(
    run_file: Path, facts: tuple[str, ...], settings: tuple[str, ...], says: Says
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, run_file, settings)
    says(refused, *facts)


def test_causal_training_takes_no_notice(run_file: Path) -> None:
    assert not load(RunConfig, run_file, ["slm.backward=filtered", "train.objective=clm"]).value.filters_backward
    assert load(RunConfig, run_file, [*FILTERED, "train.objective=slm"]).value.filters_backward
