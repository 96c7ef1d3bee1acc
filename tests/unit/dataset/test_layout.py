"""A dataset that is not whole is refused before a row of it is read."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megaslm.dataset.folder import check_layout
from megaslm.dataset.index import merge_index, read_index
from megaslm.dataset.manifest import DomainSplit, Part, read_manifest, write_manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from tests.messages import Says
from tests.small_shards import FORMATS, ROWS, make, tokens_of

SCORED_COLUMNS = "domain (uint16), ref_loss (ndarray:float16:6), tokens (ndarray:uint16:7)"
ENTROPY_COLUMNS = SCORED_COLUMNS.replace("ref_loss", "ref_entropy (ndarray:float16:6), ref_loss")


@pytest.mark.parametrize(
    ("row_format", "found", "expected"),
    [("scored", SCORED_COLUMNS, ENTROPY_COLUMNS), ("entropy", ENTROPY_COLUMNS, SCORED_COLUMNS)],
)
def test_columns_that_are_not_the_manifests_are_named(
    tmp_path: Path, row_format: str, found: str, expected: str, says: Says
) -> None:
    make(tmp_path, FORMATS[row_format])
    manifest = read_manifest(tmp_path)
    assert manifest.reference is not None
    other = manifest.reference.model_copy(update={"entropy": not manifest.reference.entropy})
    write_manifest(tmp_path, manifest.model_copy(update={"reference": other}))
    with pytest.raises(DataError) as error:
        check_layout(tmp_path)
    says(error, "shard.00000.mds", found, expected)


def drop_shard(folder: Path) -> None:
    (folder / "part-00001" / "shard.00001.mds").unlink()


def cut_shard(folder: Path) -> None:
    path = folder / "part-00001" / "shard.00001.mds"
    path.write_bytes(path.read_bytes()[:-1])


def drop_part_index(folder: Path) -> None:
    (folder / "part-00001" / "index.json").unlink()


def drop_merged_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def spoil_merged_index(folder: Path) -> None:
    (folder / "index.json").write_text("{")


def shorten_merged_index(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "shards": index["shards"][1:]}))


def reorder_merged_index(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "shards": index["shards"][::-1]}))


def reformat_merged_index(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def change_part_index(folder: Path) -> None:
    path = folder / "part-00001" / "index.json"
    path.write_text(path.read_text() + "\n")


def cut_part_index(folder: Path) -> None:
    path = folder / "part-00001" / "index.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_part(folder: Path) -> None:
    shutil.rmtree(folder / "part-00001")


def add_part(folder: Path) -> None:
    shutil.copytree(folder / "part-00001", folder / "part-00002")


@pytest.mark.parametrize(
    ("corruption", "named"),
    [
        (drop_shard, "shard.00001.mds"),
        (cut_shard, "shard.00001.mds"),
        (drop_part_index, "part-00001/index.json"),
        (drop_merged_index, "a/index.json"),
        (spoil_merged_index, "a/index.json"),
        (shorten_merged_index, "a/index.json"),
        (reorder_merged_index, "a/index.json"),
        (reformat_merged_index, "a/index.json"),
        (change_part_index, "part-00001/index.json"),
        (cut_part_index, "part-00001/index.json"),
        (drop_part, "part-00001"),
        (add_part, "part-00002"),
    ],
)
def test_a_corrupt_dataset_is_noticed_before_it_is_read(
    tmp_path: Path, corruption: object, named: str, says: Says
) -> None:
    make(tmp_path, FORMATS["narrow"])
    check_layout(tmp_path)
    corruption(tmp_path / "train" / "a")  # type: ignore[operator]
    with pytest.raises(DataError) as refused:
        check_layout(tmp_path)
    says(refused, named)


def test_rows_that_the_manifest_does_not_count_are_noticed(tmp_path: Path, says: Says) -> None:
    make(tmp_path, FORMATS["narrow"])
    manifest = read_manifest(tmp_path)
    share = manifest.splits["train"]["a"].model_copy(update={"rows": 7})
    write_manifest(tmp_path, manifest.model_copy(update={"splits": {"train": {"a": share}}}))
    with pytest.raises(DataError) as refused:
        check_layout(tmp_path)
    says(refused, "manifest.json", "train/a", "133")


def test_a_column_that_can_run_code_is_refused_by_name(tmp_path: Path, says: Says) -> None:
    from megaslm.dataset.mosaic import MDSWriter

    make(tmp_path, FORMATS["narrow"], parts=(0,))
    folder = tmp_path / "train" / "a" / "part-00000"
    shutil.rmtree(folder)
    columns = {**FORMATS["narrow"].columns, "extra": "pkl"}
    with MDSWriter(columns=columns, out=str(folder), hashes=["xxh3_64"]) as writer:
        for row in tokens_of(0):
            writer.write({"tokens": row, "domain": np.uint16(3), "extra": {"any": "thing"}})
    index = (folder / "index.json").read_bytes()
    part = Part(
        name="part-00000", rows=ROWS, tokens_sha256="", ref_loss_sha256=None,
        index_sha256=hashlib.sha256(index).hexdigest(), bytes=(folder / "shard.00000.mds").stat().st_size,
    )  # fmt: skip
    merge_index(folder.parent, [part])
    share = DomainSplit(rows=ROWS, tokens=0, documents=0, parts=(part,))
    write_manifest(tmp_path, read_manifest(tmp_path).model_copy(update={"splits": {"train": {"a": share}}}))
    with pytest.raises(DataError) as refused:
        check_layout(tmp_path)
    says(refused, "part-00000/shard.00000.mds", "extra", "pkl")
    with pytest.raises(DataError) as refused:
        RowReader(tmp_path, "train", "a").rows(0, 1)
    says(refused, "extra", "pkl")


@pytest.mark.parametrize("place", ["../../elsewhere.mds", "/elsewhere.mds", "a/../../elsewhere.mds"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, place: str, says: Says) -> None:
    make(tmp_path, FORMATS["narrow"])
    (folder,) = {path.parent for path in tmp_path.rglob("part-00000/index.json")}
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = place
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError) as refused:
        read_index(folder)
    says(refused, folder / "index.json", place)
