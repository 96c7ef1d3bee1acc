"""What a start refuses without a GPU, `train --check` refuses too, with the same message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import read_manifest, write_manifest
from megaslm.errors import UserMistake
from megaslm.training.train import train
from tests.chain import Chain
from tests.forked_cli import call_megaslm
from tests.forks import fork, statuses_of
from tests.toy import SHAPE, run_config, write_config
from tests.training import changed

Spoilt = Callable[[Chain, Path], RunConfig]


def with_model(chain: Chain, folder: Path) -> RunConfig:
    """A run from a copy of the reference, which is to be spoilt."""
    shutil.copytree(chain.reference, folder / "model")
    return run_config(
        folder / "run", chain.tokens, model={"from_scratch": None, "from_pretrained": str(folder / "model")}
    )


def swapped_words(chain: Chain, folder: Path) -> RunConfig:
    config, path = with_model(chain, folder), folder / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["w5"], vocab["w6"] = vocab["w6"], vocab["w5"]
    path.write_text(json.dumps(content))
    return config


def whole_numbers(chain: Chain, folder: Path) -> RunConfig:
    config, path = with_model(chain, folder), folder / "model" / "model.safetensors"
    weights = load_file(path)
    save_file({name: weight.char() for name, weight in weights.items()}, path)
    return config


def few_positions(chain: Chain, folder: Path) -> RunConfig:
    config, path = with_model(chain, folder), folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 8}))
    return config


def small_vocabulary(chain: Chain, folder: Path) -> RunConfig:
    return run_config(folder / "run", chain.tokens, model={"from_scratch": {**SHAPE, "vocab_size": 32}})


def cut_off_shard(chain: Chain, folder: Path, split: str = "train") -> Path:
    copy = Path(shutil.copytree(chain.tokens, folder / "copy"))
    shard = next((copy / split / "a" / "part-00000").glob("*.mds*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    return copy


def damaged_text(chain: Chain, folder: Path) -> RunConfig:
    return run_config(folder / "run", cut_off_shard(chain, folder))


def damaged_heldout_text(chain: Chain, folder: Path) -> RunConfig:
    held = {"dataset": str(cut_off_shard(chain, folder, "heldout"))}
    return run_config(folder / "run", chain.tokens, validation={"sets": {"held": held}})


def large_batch(chain: Chain, folder: Path) -> RunConfig:
    tokens = 128 * 16
    return run_config(folder / "run", chain.tokens, train={"global_batch_tokens": tokens, "total_tokens": tokens})


def streams_of(chain: Chain, folder: Path, *datasets: Path, **weights: float) -> RunConfig:
    streams = {f"s{number}": {"dataset": str(place)} for number, place in enumerate(datasets)}
    for name, weight in weights.items():
        streams[name]["weight"] = weight  # type: ignore[assignment]
    return run_config(folder / "run", chain.tokens, data={"train": None, "streams": streams})


def other_columns(chain: Chain, folder: Path) -> RunConfig:
    return streams_of(chain, folder, chain.tokens, chain.scored)


def read_twice(chain: Chain, folder: Path) -> RunConfig:
    return streams_of(chain, folder, chain.tokens, chain.tokens)


def tiny_weight(chain: Chain, folder: Path) -> RunConfig:
    copy = Path(shutil.copytree(chain.tokens, folder / "copy"))
    return streams_of(chain, folder, chain.tokens, copy, s0=1, s1=1e-6)


def losses_of_other_rows(chain: Chain, folder: Path) -> RunConfig:
    copy = Path(shutil.copytree(chain.scored, folder / "copy"))
    manifest = read_manifest(copy)
    assert manifest.reference is not None
    stale = manifest.reference.model_copy(update={"dataset_sha256": "0" * 64})
    write_manifest(copy, manifest.model_copy(update={"reference": stale}))
    return changed(chain.slm_config(folder / "run"), data={"train": str(copy)})


def other_isolation(chain: Chain, folder: Path) -> RunConfig:
    return changed(chain.slm_config(folder / "run"), model={"document_isolation": False})


def large_cache(chain: Chain, folder: Path) -> RunConfig:
    slm = {"head": "cache", "head_cache_gib": 1e-6, "scope": "sequence"}
    return changed(chain.slm_config(folder / "run"), slm=slm)


def with_task(chain: Chain, folder: Path, **chosen: object) -> RunConfig:
    (folder / "a.jsonl").write_text(json.dumps({"q": "w5", "a": "5"}) + "\n")
    task = {"files": ["a.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}", "prompt": "{question}"}
    (folder / "task.yaml").write_text(yaml.safe_dump({**task, "stop": ["\n"], "grader": "rho"}))
    asked = {"task": str(folder / "task.yaml"), "data": str(folder), "max_new_tokens": 3, **chosen}
    return run_config(folder / "run", chain.tokens, validation={"tasks": {"words": asked}})


def long_answers(chain: Chain, folder: Path) -> RunConfig:
    return with_task(chain, folder, max_new_tokens=1000)


def nothing_to_measure(chain: Chain, folder: Path) -> RunConfig:
    return with_task(chain, folder, measure="losses")


def probe_of_other_rows(chain: Chain, folder: Path) -> RunConfig:
    copy = Path(shutil.copytree(chain.tokens, folder / "copy"))
    write_manifest(copy, read_manifest(copy).model_copy(update={"seq_len": 8}))
    return run_config(folder / "run", chain.tokens, probe={"every_tokens": 128, "dataset": str(copy)})


def missing_tracker(chain: Chain, folder: Path) -> RunConfig:
    return run_config(folder / "run", chain.tokens, log={"tracker": "wandb"})


def governed_key(chain: Chain, folder: Path) -> RunConfig:
    return run_config(folder / "run", chain.tokens, deepspeed_extra={"bf16": {"enabled": True}})


def bf16_without_zero(chain: Chain, folder: Path) -> RunConfig:
    config = run_config(folder / "run", chain.tokens, model={"precision": "bf16"})
    return changed(config, zero={"stage": 0})


SPOILT = [
    swapped_words, whole_numbers, few_positions, small_vocabulary, damaged_text, damaged_heldout_text, large_batch,
    other_columns, read_twice, tiny_weight, losses_of_other_rows, other_isolation, large_cache, long_answers,
    nothing_to_measure, probe_of_other_rows, governed_key, bf16_without_zero,
]  # fmt: skip


def refusal(config: RunConfig, folder: Path) -> str:
    """The message of the mistake that ends the start of a run, without the look before it."""

    def start() -> None:
        with pytest.raises(UserMistake) as refused:
            train(config)
        (folder / "refusal").write_text(str(refused.value), encoding="utf-8")

    assert statuses_of([fork(start)]) == [0]
    return (folder / "refusal").read_text(encoding="utf-8")


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_a_start_refuses_a_check_refuses(chain: Chain, tmp_path: Path, spoilt: Spoilt) -> None:
    config = spoilt(chain, tmp_path)
    checked = call_megaslm("train", write_config(tmp_path / "run.yaml", config), "--check")
    assert checked.returncode == 2
    told = [line.strip() for line in checked.stderr.splitlines()]
    assert all(line.strip() in told[-1] or line.strip() in told for line in refusal(config, tmp_path).splitlines())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_tracker_that_is_missing(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaslm.observe.tracker.find_spec", lambda name: None)
    test_what_a_start_refuses_a_check_refuses(chain, tmp_path, missing_tracker)


@pytest.mark.parametrize("objective", ["clm", "slm"])
def test_what_fits_passes(chain: Chain, tmp_path: Path, objective: str) -> None:
    config = with_model(chain, tmp_path) if objective == "clm" else chain.slm_config(tmp_path / "run")
    checked = call_megaslm("train", write_config(tmp_path / "run.yaml", config), "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
