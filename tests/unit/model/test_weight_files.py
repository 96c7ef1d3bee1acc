import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megaslm.errors import ModelError
from megaslm.model.weight_files import check_weight_files, count_parameters, weight_files, weights_sha256


def save(path: Path, *names: str) -> None:
    save_file({name: torch.full((4,), float(len(name))) for name in names}, path, metadata={"format": "pt"})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files and their index, and a third file that nothing loads."""
    save(tmp_path / "model-00001-of-00002.safetensors", "a", "bb")
    save(tmp_path / "model-00002-of-00002.safetensors", "ccc")
    save(tmp_path / "consolidated.safetensors", "other")
    files = {"a": 1, "bb": 1, "ccc": 2}
    index = {"weight_map": {name: f"model-0000{number}-of-00002.safetensors" for name, number in files.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 48}, **index}))
    return tmp_path


def test_files_are_those_that_are_loaded(sharded: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert weight_files(sharded) == [sharded / name for name in names]
    check_weight_files(sharded)
    save(sharded / "model.safetensors", "whole")
    assert weight_files(sharded) == [sharded / "model.safetensors"]


def test_elements_are_counted_in_what_is_loaded(sharded: Path) -> None:
    assert count_parameters(sharded) == 3 * 4


def test_the_hash_sees_one_changed_byte_of_what_is_loaded(sharded: Path) -> None:
    before = weights_sha256(sharded)
    (sharded / "consolidated.safetensors").unlink()
    assert weights_sha256(sharded) == before
    second = sharded / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1] + b"\x01")
    assert weights_sha256(sharded) != before


def test_a_missing_file_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: is missing"):
        check_weight_files(sharded)


@pytest.mark.parametrize("kept_bytes", [-1, 20, 0])
def test_a_truncated_file_is_named(sharded: Path, kept_bytes: int) -> None:
    second = sharded / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:kept_bytes])
    with pytest.raises(
        ModelError, match=r"model-00002-of-00002\.safetensors: is damaged or incomplete, with \d+ bytes"
    ):
        check_weight_files(sharded)


def test_files_of_another_model_are_found_out(sharded: Path) -> None:
    save(sharded / "model-00002-of-00002.safetensors", "dddd")
    with pytest.raises(ModelError, match=r"ccc is in model-00002.*it is in none of its files"):
        check_weight_files(sharded)


def test_an_index_that_is_none(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": ')
    with pytest.raises(ModelError, match="is not an index of weights"):
        check_weight_files(sharded)
