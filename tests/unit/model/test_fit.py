"""A model's tokenizer is compared with a dataset's by the ids that texts get."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaslm.data.dataset.manifest import TOKENIZER, Manifest
from megaslm.data.tokenizing.tokenizer import tokenizer_facts
from megaslm.errors import DataError
from megaslm.model.fit import check_tokenizer_fits
from tests.toy import EOS_ID, VOCAB_SIZE, make_dataset, make_tokenizer

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
Change = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("toy") / "data"
    made = make_dataset(folder, {("train", "a"): [2]})
    return made.model_copy(update={"ids_sha256": tokenizer_facts(folder / TOKENIZER).ids_sha256})


def model_with(folder: Path, change: Change) -> Path:
    make_tokenizer(folder)
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    state, config = (json.loads(path.read_text()) for path in files)
    change(state, config)
    for path, content in zip(files, (state, config), strict=True):
        path.write_text(json.dumps(content))
    return folder


def pad(state: dict[str, Any], config: dict[str, Any]) -> None:
    state["added_tokens"].append({"id": VOCAB_SIZE, "content": "<pad>", "special": True, **FLAGS})


def chat(state: dict[str, Any], config: dict[str, Any]) -> None:
    for number, name in enumerate(("<|im_start|>", "<|im_end|>")):
        state["added_tokens"].append({"id": VOCAB_SIZE + number, "content": name, "special": True, **FLAGS})
    config["eos_token"] = "<|im_end|>"


def template(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["pad_token"], config["chat_template"] = "<pad>", "{{ messages }}"


def stale_eos(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["eos_token"] = "<|gone|>"


def no_eos(state: dict[str, Any], config: dict[str, Any]) -> None:
    del config["eos_token"]


def plain_token(state: dict[str, Any], config: dict[str, Any]) -> None:
    state["added_tokens"].append({"id": VOCAB_SIZE, "content": "<tool>", "special": False, **FLAGS})


def lower(state: dict[str, Any], config: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def eos_elsewhere(state: dict[str, Any], config: dict[str, Any]) -> None:
    words = state["model"]["vocab"]
    words["</s>"], words["w9"] = words["w9"], words["</s>"]


@pytest.mark.parametrize("change", [pad, chat, template, stale_eos, no_eos])
def test_special_tokens_alone_make_no_other_tokenizer(tmp_path: Path, manifest: Manifest, change: Change) -> None:
    assert manifest.eos_id == EOS_ID
    check_tokenizer_fits(model_with(tmp_path / "model", change), manifest, dataset="data")


@pytest.mark.parametrize("change", [plain_token, lower, eos_elsewhere])
def test_other_ids_are_refused(tmp_path: Path, manifest: Manifest, change: Change) -> None:
    with pytest.raises(DataError, match="model has the tokenizer"):
        check_tokenizer_fits(model_with(tmp_path / "model", change), manifest, dataset="data")


def test_a_dataset_of_an_earlier_version_is_compared_by_the_whole_tokenizer(tmp_path: Path, manifest: Manifest) -> None:
    earlier = manifest.model_copy(update={"ids_sha256": None})
    check_tokenizer_fits(model_with(tmp_path / "same", template), earlier, dataset="data")
    with pytest.raises(DataError, match="other has the tokenizer"):
        check_tokenizer_fits(model_with(tmp_path / "other", pad), earlier, dataset="data")
