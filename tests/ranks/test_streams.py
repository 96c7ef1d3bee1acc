"""Two datasets, each scored by a reference of its own, trained on together with weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import read_manifest, write_manifest
from megaslm.errors import ConfigError, DataError, ReferenceMismatch
from megaslm.training.data_checks import check_scored
from megaslm.training.resumption import check_run
from megaslm.training.training_data import open_training_data
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config

pytestmark = pytest.mark.slow

STEPS = 12
"""One epoch has 10 steps: 80 of the 65 + 18 rows."""
DOMAINS = {"web/a": 35, "web/b": 30, "code": 18}
"""Rows of each domain."""


@dataclass(frozen=True)
class Streams:
    """What the run is made of: `web` is the chain's dataset, three times as much is drawn from the smaller `code`."""

    chain: Chain
    root: Path

    @property
    def code_reference(self) -> Path:
        return self.root / "code-reference"

    @property
    def code_tokens(self) -> Path:
        return self.root / "code-tokens"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def run(self) -> Path:
        return self.root / "run"

    def config(self, run: Path, **data: object) -> RunConfig:
        """Twelve steps with a checkpoint after six; `data` changes settings of the streams, as web__weight=1."""
        streams: dict[str, dict[str, object]] = {
            "web": {"dataset": str(self.chain.scored), "weight": 1.0, "reference": str(self.chain.reference)},
            "code": {"dataset": str(self.code), "weight": 3.0, "reference": str(self.code_reference)},
        }
        for key, value in data.items():
            stream, setting = key.split("__")
            streams[stream][setting] = value
        return run_config(
            run,
            self.chain.scored,
            model={"from_scratch": None, "from_pretrained": str(self.chain.reference)},
            data={"train": None, "streams": streams},
            train={
                "objective": "slm",
                "schedule": "constant",
                "total_tokens": STEPS * 8 * SEQ_LEN,
                "micro_batch_rows": 2,
            },
            slm={"verify_rows": 4},
            checkpoint={"every_tokens": 6 * 8 * SEQ_LEN},
        )


@pytest.fixture(scope="module")
def streams(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Streams:
    """Made once: `code` scored by random weights, and a run of two ranks."""
    streams = Streams(chain, tmp_path_factory.mktemp("streams"))
    make_dataset(streams.code_tokens, {("train", "python"): [10, 8], ("train", "c"): [4]}, seed=9)
    shutil.copytree(chain.reference, streams.code_reference)
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(chain.reference))
    other.save_pretrained(streams.code_reference)
    run_megaslm("score", "--reference", streams.code_reference, streams.code_tokens, streams.code)
    config = streams.config(streams.run, code__domains=["python"])
    run_megaslm("train", write_config(streams.root / "run.yaml", config), world_size=2)
    return streams


def steps_of(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "tokens_per_second"}
        for line in lines
        if line["kind"] == "step"
    ]


def test_domains_are_reported_by_stream_in_the_proportions_asked_for(streams: Streams) -> None:
    steps = steps_of(streams.run)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert all(set(step["domain_ratio"]) <= set(DOMAINS) for step in steps)  # type: ignore[call-overload]
    assert {name for step in steps for name in step["domain_ratio"]} == set(DOMAINS)  # type: ignore[attr-defined]
    # An epoch's 80 rows: 20 of the web by its domains' rows, 60 of the code. What rounding leaves over goes to any.
    tokens = steps[9]["domain_tokens"]
    assert isinstance(tokens, dict)
    assert set(tokens) == set(DOMAINS)
    assert sum(tokens.values()) == 80 * SEQ_LEN
    for name, expected in {"code": 60, "web/a": 20 * 35 / 65, "web/b": 20 * 30 / 65}.items():
        assert abs(tokens[name] / SEQ_LEN - expected) <= 1
    assert steps[9]["domain_passes"] == {
        name: pytest.approx(tokens[name] / SEQ_LEN / rows) for name, rows in DOMAINS.items()
    }


def test_each_step_selects_k_although_rows_are_repeated(streams: Streams) -> None:
    for step in steps_of(streams.run):
        assert abs(float(str(step["selected_ratio"])) - 0.6) <= 0.5 / 60


def test_a_resumed_run_repeats_the_undisturbed_one(streams: Streams, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(streams.run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    config = write_config(tmp_path / "run.yaml", streams.config(run, code__domains=["python"]))
    run_megaslm("train", config, "--resume", world_size=2)
    assert steps_of(run) == steps_of(streams.run)
    cost, undisturbed = (json.loads((path / "cost.json").read_text()) for path in (run, streams.run))
    assert cost["domains"] == undisturbed["domains"]


def test_one_rank_trains_on_what_two_trained_on(streams: Streams, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = streams.config(run, code__domains=["python"])
    run_megaslm("train", write_config(tmp_path / "run.yaml", config))
    for alone, together in zip(steps_of(run), steps_of(streams.run), strict=True):
        for exact in ("selected_ratio", "domain_tokens"):
            assert alone[exact] == together[exact]
        assert alone["loss"] == pytest.approx(together["loss"], rel=1e-4)


def test_cost_counts_every_scoring_and_every_reference(streams: Streams) -> None:
    cost = json.loads((streams.run / "cost.json").read_text())
    settings = ["data.streams.web", "data.streams.code"]
    assert list(cost["datasets"]) == settings
    assert cost["scoring"]["seconds"] == sum(cost["datasets"][name]["scoring"]["seconds"] for name in settings)
    assert cost["reference_training"]["seconds"] > 0
    # `code-reference` was copied with the cost of the chain's: other weights, so it counts as another training.
    assert cost["reference_training"]["seconds"] == 2 * cost["datasets"][settings[0]]["reference_training"]["seconds"]


def test_the_run_says_what_it_read(streams: Streams) -> None:
    datasets = json.loads((streams.run / "manifest.json").read_text())["datasets"]
    assert list(datasets) == ["data.streams.web", "data.streams.code"]
    code, manifest = datasets["data.streams.code"], read_manifest(streams.code)
    assert manifest.reference is not None
    assert code["folder"] == str(streams.code)
    assert code["tokens_sha256"] == manifest.tokens_fingerprint()
    assert code["reference_weights_sha256"] == manifest.reference.weights_sha256
    assert code["reference_weights_sha256"] != datasets["data.streams.web"]["reference_weights_sha256"]


Check = Callable[[RunConfig], None]


@pytest.fixture
def check(streams: Streams) -> Check:
    """What a run is asked before it starts, on its first rank."""

    def ask(config: RunConfig) -> None:
        check_scored(config, open_training_data(config), torch.device("cpu"))

    return ask


def test_each_stream_is_checked_against_its_own_reference(streams: Streams, check: Check, says: Says) -> None:
    check(streams.config(streams.run))
    swapped = streams.config(streams.run, code__reference=str(streams.chain.reference))
    with pytest.raises(ReferenceMismatch) as refused:
        check(swapped)
    says(refused, f"{streams.code} ", f"data.streams.code.reference = {streams.chain.reference} ")


def test_a_stream_that_is_not_scored_is_refused(streams: Streams, check: Check, says: Says) -> None:
    mixed = streams.config(streams.run, code__dataset=str(streams.code_tokens))
    with pytest.raises(DataError) as refused:
        check(mixed)
    says(refused, "data.streams.web = ", "ref_loss tokens, ", f"{streams.code_tokens} ")
    unscored = streams.config(
        streams.run, code__dataset=str(streams.code_tokens), web__dataset=str(streams.chain.tokens)
    )
    with pytest.raises(DataError) as refused:
        check(unscored)
    says(refused, f"{streams.chain.tokens} ", "ref_loss")


def test_a_stream_of_another_tokenizer_is_refused(streams: Streams, tmp_path: Path, says: Says) -> None:
    other = Path(shutil.copytree(streams.code, tmp_path / "other"))
    write_manifest(other, read_manifest(other).model_copy(update={"tokenizer_sha256": "0" * 64}))
    with pytest.raises(DataError) as refused:
        open_training_data(streams.config(streams.run, code__dataset=str(other)))
    says(refused, f"{streams.chain.scored} ", f"{other} ", "0" * 12, "64")


def test_other_weights_are_another_run(streams: Streams, says: Says) -> None:
    def resume(config: RunConfig) -> list[str]:
        return check_run(config, open_training_data(config).read, resume=True)

    assert resume(streams.config(streams.run, code__domains=["python"])) == []
    with pytest.raises(ConfigError) as refused:
        resume(streams.config(streams.run, code__domains=["python"], web__weight=2.0))
    says(refused, "data.streams.web.weight: 1.0 → 2.0")
    with pytest.raises(ConfigError) as refused:
        resume(streams.config(streams.run))
    says(refused, "data.streams.code.domains: ('python',) → None")


def test_other_data_are_another_run(streams: Streams, tmp_path: Path, says: Says) -> None:
    config = streams.config(
        streams.run, web__domains=["a"], code__domains=["b"], code__dataset=str(streams.chain.scored)
    )
    with pytest.raises(ConfigError) as refused:
        check_run(config, open_training_data(config).read, resume=True)
    says(refused, "  data.streams.code.tokens_sha256: ")
    one = run_config(streams.run, streams.chain.scored)
    with pytest.raises(ConfigError) as refused:
        check_run(one, open_training_data(one).read, resume=True)
    says(refused, "data.streams.web, data.streams.code", "data.train:")
    moved = Path(shutil.copytree(streams.code, tmp_path / "moved"))
    config = streams.config(streams.run, code__domains=["python"], code__dataset=str(moved))
    assert check_run(config, open_training_data(config).read, resume=True) == [
        f"data.streams.code.dataset: {streams.code} → {moved}"
    ]
