"""A model's tokenizer is compared with a dataset's by the ids that texts get."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaslm.dataset.manifest import TOKENIZER, Manifest
from megaslm.errors import DataError
from megaslm.model.fit import check_tokenizer_fits
from megaslm.tokenizer.tokenizer import tokenizer_facts
from tests.messages import Says
from tests.toy import EOS_ID, VOCAB_SIZE, make_dataset, make_tokenizer

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
Change = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy") / "data"


@pytest.fixture(scope="module")
def manifest(dataset: Path) -> Manifest:
    made = make_dataset(dataset, {("train", "a"): [2]})
    return made.model_copy(update={"ids_sha256": tokenizer_facts(dataset / TOKENIZER).ids_sha256})


def check(model: Path, dataset: Path, manifest: Manifest) -> None:
    check_tokenizer_fits(model, manifest, tokenizer=dataset / TOKENIZER, dataset="data")


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
@pytest.mark.parametrize("states_ids", [True, False], ids=["now", "of an earlier version"])
def test_special_tokens_alone_make_no_other_tokenizer(
    tmp_path: Path, dataset: Path, manifest: Manifest, change: Change, states_ids: bool
) -> None:
    stated = manifest if states_ids else manifest.model_copy(update={"ids_sha256": None})
    assert manifest.eos_id == EOS_ID
    check(model_with(tmp_path / "model", change), dataset, stated)


@pytest.mark.parametrize("change", [plain_token, lower, eos_elsewhere])
@pytest.mark.parametrize("states_ids", [True, False], ids=["now", "of an earlier version"])
def test_other_ids_are_refused(
    tmp_path: Path, dataset: Path, manifest: Manifest, change: Change, states_ids: bool
) -> None:
    stated = manifest if states_ids else manifest.model_copy(update={"ids_sha256": None})
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "model"))):
        check(model_with(tmp_path / "model", change), dataset, stated)


def test_both_tokenizers_are_told(tmp_path: Path, dataset: Path, manifest: Manifest, says: Says) -> None:
    model = model_with(tmp_path / "model", lower)
    with pytest.raises(DataError) as refused:
        check(model, dataset, manifest)
    says(refused, model, tokenizer_facts(model).sha256[:12], manifest.tokenizer_sha256[:12])
