"""Each setting is shown with its origin and its meaning."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.config.explain import explain, render
from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from tests.messages import Says
from tests.shipped import CONFIGS, NAMES


def test_every_setting_has_value_origin_and_meaning(run_file: Path, says: Says) -> None:
    loaded = load(RunConfig, run_file, ["train.lr=1e-3", "validation.sets.web.dataset=d"])
    by_key = {setting.key: setting for setting in explain(loaded)}
    assert list(by_key) == list(loaded.provenance)
    assert (by_key["train.lr"].value, by_key["train.lr"].origin) == (1e-3, "--set")
    says(by_key["train.lr"].meaning)
    says(by_key["validation.sets.web.dataset"].meaning)
    assert by_key["model.from_scratch.num_layers"].origin == f"{run_file}:3"
    assert [key for key, setting in by_key.items() if not setting.meaning] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_configs_is_explained(name: str) -> None:
    loaded = load(RunConfig, CONFIGS / name)
    output = StringIO()
    Console(file=output, width=120).print(render(explain(loaded)))
    shown = [line.partition(" = ")[0] for line in output.getvalue().splitlines() if " = " in line]
    assert set(loaded.provenance) <= set(shown)


def test_an_untyped_mapping_carries_its_fields_meaning(run_file: Path, says: Says) -> None:
    loaded = load(RunConfig, run_file, ["deepspeed_extra.comms_logger.enabled=true"])
    (setting,) = [row for row in explain(loaded) if row.key == "deepspeed_extra.comms_logger.enabled"]
    says(setting.meaning)


def test_a_setting_is_shown_on_one_line_and_its_meaning_below(run_file: Path) -> None:
    output = StringIO()
    shown = render(explain(load(RunConfig, run_file, ["data.domains=[red, bold]"])))
    Console(file=output, width=120).print(shown)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    at = lines.index("data.domains = [red, bold] · --set")
    assert lines[at + 1].startswith("    Domains of `train` to read")
    assert max(map(len, lines)) <= 120
