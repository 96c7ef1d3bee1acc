"""Several datasets in one run: what may be said of them, and what is refused."""

from pathlib import Path

import pytest

from megaslm.config.explain import explain
from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.errors import ConfigError
from tests.messages import Says

STREAMS = """\
run_dir: runs/test
model:
  from_scratch: {vocab_size: 512, hidden_size: 64, intermediate_size: 128, num_layers: 2, num_heads: 4}
data:
  seq_len: 128
  streams:
    web: {dataset: runs/web, weight: 3}
    code: {dataset: runs/code, weight: 1, domains: [python, c], reference: models/code-ref}
train: {objective: slm, total_tokens: 100_000, global_batch_tokens: 1024, micro_batch_rows: 3, lr: 2e-5}
"""


@pytest.fixture
def streams_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(STREAMS, encoding="utf-8")
    return path


def test_streams_are_read_in_their_order_and_survive_a_dump(streams_file: Path) -> None:
    config = load(RunConfig, streams_file).value
    assert list(config.data.streams) == ["web", "code"]
    code = config.data.streams["code"]
    assert (code.dataset, code.weight, code.domains) == ("runs/code", 1.0, ("python", "c"))
    assert (code.reference, config.data.streams["web"].reference) == ("models/code-ref", None)
    streams_file.write_text(dump(config), encoding="utf-8")
    assert load(RunConfig, streams_file).value == config


def test_each_setting_of_a_stream_is_explained(streams_file: Path, says: Says) -> None:
    loaded = load(RunConfig, streams_file, ["data.streams.web.weight=2.5"])
    by_key = {setting.key: setting for setting in explain(loaded)}
    weight = by_key["data.streams.web.weight"]
    assert (weight.value, weight.origin) == (2.5, "--set")
    says(weight.meaning)
    assert by_key["data.streams.code.reference"].origin == f"{streams_file}:8"
    assert [key for key, setting in by_key.items() if not setting.meaning] == []


PROBLEMS = [
    (["data.train=runs/tokens"], "streams"),
    (["data.streams=null", "data.train=null"], "data.streams = null"),
    (["data.domains=[a]"], "domains"),
    (["data.streams.web.weight=null"], "weight"),
    (["data.streams.web.weight=0"], "data.streams.web.weight = 0"),
    (["data.streams.web.repeat=2"], "repeat"),
    (["data.streams.web.wieght=1"], "data.streams.web.weight"),
    (["data.streams.new={weight: 1}"], "data.streams.new.dataset"),
    (["data.streams.'a b'={dataset: x, weight: 1}"], "\"'a b'\""),
    (["slm.reference=models/ref"], "slm.reference = models/ref"),
]


@pytest.mark.parametrize(("overrides", "named"), PROBLEMS, ids=[overrides[0] for overrides, _ in PROBLEMS])
def test_what_cannot_be_meant_is_refused(streams_file: Path, overrides: list[str], named: str, says: Says) -> None:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, streams_file, overrides)
    says(caught, streams_file, named)
    assert len(str(caught.value).splitlines()) == 2


def test_no_data_at_all_is_refused(run_file: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, run_file, ["data.train=null"])
    says(refused, "data")


def test_repeats_need_no_weights(streams_file: Path) -> None:
    overrides = ["data.streams.web.weight=null", "data.streams.code.weight=null", "data.streams.code.repeat=2.5"]
    assert load(RunConfig, streams_file, overrides).value.data.streams["code"].repeat == 2.5
