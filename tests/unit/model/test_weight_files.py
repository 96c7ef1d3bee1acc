import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megaslm.errors import ModelError
from megaslm.model.families import FAMILIES
from megaslm.model.weight_files import count_parameters, is_untrained, stored_weights, weight_files, weights_sha256
from tests.messages import Says
from tests.model_folders import make_model, rows


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
    stored_weights(sharded)
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


def test_a_missing_file_is_named(sharded: Path, says: Says) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError) as refused:
        stored_weights(sharded)
    says(refused, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("kept_bytes", [-1, 20, 0])
def test_a_truncated_file_is_named(sharded: Path, kept_bytes: int, says: Says) -> None:
    second = sharded / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:kept_bytes])
    with pytest.raises(ModelError) as refused:
        stored_weights(sharded)
    says(refused, "model-00002-of-00002.safetensors", second.stat().st_size)


def test_files_of_another_model_are_found_out(sharded: Path, says: Says) -> None:
    save(sharded / "model-00002-of-00002.safetensors", "dddd")
    with pytest.raises(ModelError) as refused:
        stored_weights(sharded)
    says(refused, "ccc", "model-00002")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"weight_map": {"a": ', "JSON"),
        ('{"metadata": {}}', "weight_map"),
        ('{"metadata": {}, "weight_map": {}}', "weight_map"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "metadata"),
        ('{"metadata": null, "weight_map": {"a": "model-00001-of-00002.safetensors"}}', "metadata"),
        ('{"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}', r"pytorch_model\.bin"),
    ],
)
def test_an_index_that_is_none(content: str, found: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=rf"index\.json: .*{found}"):
        stored_weights(sharded)


def test_files_may_lie_in_folders_of_the_folder(sharded: Path, says: Says) -> None:
    second = "model-00002-of-00002.safetensors"
    (sharded / "shards").mkdir()
    (sharded / second).rename(sharded / "shards" / second)
    _edit_index(sharded, ccc=f"shards/{second}")
    assert sorted(stored_weights(sharded)) == ["a", "bb", "ccc"]
    assert weights_sha256(sharded)
    _edit_index(sharded, ccc=f"../{sharded.name}/shards/{second}")
    with pytest.raises(ModelError) as refused:
        weight_files(sharded)
    says(refused, f"../{sharded.name}/shards/{second}", FOLDER=sharded.name)


def test_a_weight_in_two_files_has_to_be_the_same_in_both(sharded: Path, says: Says) -> None:
    save(sharded / "model-00002-of-00002.safetensors", "bb", "ccc")
    assert sorted(stored_weights(sharded)) == ["a", "bb", "ccc"]
    other = {"bb": torch.full((4,), 7.0), "ccc": torch.full((4,), 3.0)}
    save_file(other, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError) as refused:
        stored_weights(sharded)
    says(refused, "bb", "model-00001", "model-00002")


def _edit_index(folder: Path, **files: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= files
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_of_training_is_seen(family: str, tmp_path: Path) -> None:
    lm = make_model(tmp_path / "new", family)
    assert is_untrained(tmp_path / "new")
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3)
    lm(rows(), labels=rows()).loss.backward()
    optimizer.step()
    lm.save_pretrained(tmp_path / "trained")
    assert not is_untrained(tmp_path / "trained")


def test_a_model_without_norms_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert not is_untrained(tmp_path)
