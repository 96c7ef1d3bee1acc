"""What a run requirements of hosts: which files they have to see, and room for its checkpoints."""

from pathlib import Path
from typing import Any

import pytest

from megaslm.training.checkpoints.file_list import describe, write_file_list
from megaslm.training.requirements import requirements_of
from tests.scoring import make_reference
from tests.toy import SHAPE, run_config


def checkpoint_bytes(tmp_path: Path, **origin: Any) -> int:
    config = run_config(tmp_path / "run", tmp_path / "tokens", model={"from_scratch": None, **origin})
    return requirements_of(config).checkpoint_bytes


def test_a_checkpoint_takes_twelve_bytes_a_parameter(tmp_path: Path) -> None:
    lm = make_reference(tmp_path / "model")
    expected = 12 * sum(parameter.numel() for parameter in lm.parameters())
    assert checkpoint_bytes(tmp_path, from_scratch=SHAPE) == expected
    assert checkpoint_bytes(tmp_path, from_pretrained=str(tmp_path / "model")) == expected


def test_a_checkpoint_takes_what_that_of_the_run_before_took(tmp_path: Path) -> None:
    for step, size in ((1, 10), (2, 30)):
        folder = tmp_path / "before" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(size))
        write_file_list(folder, {"weights": describe(folder / "weights")})
    assert checkpoint_bytes(tmp_path, from_run=str(tmp_path / "before")) == 30


@pytest.mark.parametrize("origin", ["from_pretrained", "from_run"])
def test_of_a_model_that_is_not_there_nothing_is_known(tmp_path: Path, origin: str) -> None:
    assert checkpoint_bytes(tmp_path, **{origin: str(tmp_path / "absent")}) == 0


def test_every_host_has_to_see_the_same_datasets_and_the_same_model(tmp_path: Path) -> None:
    config = run_config(
        tmp_path / "run",
        tmp_path,
        model={"from_scratch": None, "from_pretrained": "/models/base"},
        data={
            "train": None,
            "streams": {"web": {"dataset": "/data/web"}, "code": {"dataset": "s3://bucket/code"}},
            "fetch": {"cache": "/local/cache"},
        },
        validation={"sets": {"held": {"dataset": "/data/held"}}},
    )
    requirements = requirements_of(config)
    assert requirements.files == {
        "manifest.json of data.streams.web": Path("/data/web/manifest.json"),
        "manifest.json of validation.sets.held": Path("/data/held/manifest.json"),
        "config.json of model.from_pretrained": Path("/models/base/config.json"),
    }
    assert requirements.cache == Path("/local/cache")
    assert requirements_of(run_config(tmp_path / "run", tmp_path)).cache is None
