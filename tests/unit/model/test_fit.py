"""A model's tokenizer is compared with a dataset's by the ids that texts get."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from megaslm.config.recipe import Bos
from megaslm.dataset.manifest import TOKENIZER, Manifest, Packing
from megaslm.errors import DataError, ModelError
from megaslm.model.fit import bos_warning, check_model_fits, check_tokenizer_fits
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


def with_bos(manifest: Manifest, bos: Bos, bos_id: int = 5) -> Manifest:
    return manifest.model_copy(update={"packing": Packing.with_bos(bos), "bos_id": bos_id})


def another_bos(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["bos_token"] = "w6"


def the_same_bos(state: dict[str, Any], config: dict[str, Any]) -> None:
    config["bos_token"] = "w5"


@pytest.mark.parametrize("bos", ["document", "row"])
def test_another_bos_than_in_the_rows_is_refused(
    tmp_path: Path, dataset: Path, manifest: Manifest, bos: Bos, says: Says
) -> None:
    """Only there: rows without BOS may be read by any model."""
    other = model_with(tmp_path / "model", another_bos)
    check(other, dataset, with_bos(manifest, "none"))
    check(model_with(tmp_path / "same", the_same_bos), dataset, with_bos(manifest, bos))
    check(model_with(tmp_path / "unnamed", no_eos), dataset, with_bos(manifest, bos))
    with pytest.raises(DataError) as refused:
        check(other, dataset, with_bos(manifest, bos))
    says(refused, other, "5, 'w5'", "6, 'w6'", f"bos: {bos}")


def puts_bos(state: dict[str, Any], config: dict[str, Any]) -> None:
    config |= {"bos_token": "w5", "add_bos_token": True}


def test_a_model_that_expects_bos_is_warned_of_where_rows_have_none(
    tmp_path: Path, manifest: Manifest, says: Says
) -> None:
    model, rows = model_with(tmp_path / "model", puts_bos), with_bos(manifest, "none")
    warning = bos_warning(model, rows, dataset="data", otherwise=", or do something else")
    says(warning, model, "`bos: document`, or do something else")
    assert bos_warning(model, with_bos(manifest, "document"), dataset="data") is None
    assert bos_warning(model, with_bos(manifest, "row"), dataset="data") is None


def test_a_model_that_expects_no_bos_is_warned_of_where_rows_have_one(
    tmp_path: Path, manifest: Manifest, says: Says
) -> None:
    model, rows = model_with(tmp_path / "model", the_same_bos), with_bos(manifest, "row")
    says(bos_warning(model, rows, dataset="data"), model, "bos: row", "`bos: none`")
    assert bos_warning(model, with_bos(manifest, "none"), dataset="data") is None


def test_a_model_without_a_tokenizer_expects_nothing(tmp_path: Path, manifest: Manifest) -> None:
    for bos in ("none", "document"):
        assert bos_warning(tmp_path, with_bos(manifest, bos), dataset="data") is None


def test_a_model_that_is_too_small_for_a_dataset_says_what_to_do(tmp_path: Path, says: Says) -> None:
    manifest = make_dataset(tmp_path / "data", {("train", "web"): [2]}, seq_len=16)
    small = LlamaConfig(vocab_size=manifest.vocab_size - 1, max_position_embeddings=16)
    short = LlamaConfig(vocab_size=manifest.vocab_size, max_position_embeddings=15)
    for config, window in ((small, None), (short, None), (short, 16)):
        with pytest.raises(ModelError) as refused:
            check_model_fits(config, manifest, model="the-model", dataset="the-data", window=window)
        says(refused, "the-model", "--window 16" if window else "the-data")
