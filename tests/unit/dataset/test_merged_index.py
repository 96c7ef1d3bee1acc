"""Parts are joined in order, none missing, none foreign, each the one that its record tells of."""

import json
import shutil
from pathlib import Path

import pytest

from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import Part
from megaslm.dataset.shards import part_name
from megaslm.errors import DataError
from tests.messages import Says
from tests.small_shards import FORMATS, ROWS, write


def renamed(folder: Path, part: Part, number: int) -> Part:
    """The part under another number."""
    (folder / part.name).rename(folder / part_name(number))
    return part.model_copy(update={"name": part_name(number)})


def test_parts_are_joined_by_number(tmp_path: Path) -> None:
    parts = [renamed(tmp_path, write(tmp_path, 1, FORMATS["narrow"]), number) for number in (100_000, 9, 99_999, 10)]
    assert merge_index(tmp_path, parts) == 4 * (ROWS + 1)
    listed = [shard["raw_data"]["basename"] for shard in json.loads((tmp_path / "index.json").read_text())["shards"]]
    order = ["part-00009", "part-00010", "part-99999", "part-100000"]
    assert list(dict.fromkeys(name.split("/")[0] for name in listed)) == order


def test_what_else_lies_in_the_folder_is_not_joined(tmp_path: Path) -> None:
    parts = [write(tmp_path, number, FORMATS["narrow"]) for number in (0, 1)]
    alone = merge_index(tmp_path, parts)
    index = (tmp_path / "index.json").read_bytes()
    shutil.copytree(tmp_path / "part-00000", tmp_path / ".unfinished-part-00002")
    for name in ("notes.json", "part-00003.json", "part-00004", "part-7"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "part-00001" / "more.json").write_text('{"shards": []}')
    assert merge_index(tmp_path, parts) == alone
    assert (tmp_path / "index.json").read_bytes() == index


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["part-00000", "part-00001", "part-00002"], "part-00002"),
        (["part-00000"], "part-00001"),
        (["part-00000", "part-00001", "part-00001"], "part-00001"),
        (["part-00000", "part-00001", "part-000001"], "part-00001"),
        (["part-00000", "part-00001", "shard.00000.mds"], "shard.00000.mds"),
    ],
)
def test_parts_that_do_not_fit_are_not_joined(tmp_path: Path, names: list[str], named: str, says: Says) -> None:
    parts = [write(tmp_path, number, FORMATS["narrow"]) for number in (0, 1)]
    given = [
        parts[min(number, 1) if number < 2 else 0].model_copy(update={"name": name})
        for number, name in enumerate(names)
    ]
    with pytest.raises(DataError) as refused:
        merge_index(tmp_path, given)
    says(refused, named)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"rows": 39}, "39 rows"),
        ({"bytes": 1}, "1 bytes"),
        ({"index_sha256": "0" * 64}, "0" * 12),
    ],
)
def test_a_part_that_is_not_as_recorded_is_not_joined(
    tmp_path: Path, record: dict[str, object], named: str, says: Says
) -> None:
    part = write(tmp_path, 0, FORMATS["narrow"])
    with pytest.raises(DataError) as refused:
        merge_index(tmp_path, [part.model_copy(update=record)])
    says(refused, "part-00000/index.json", named)
    assert not (tmp_path / "index.json").exists()


def test_a_part_in_the_place_of_another_is_not_joined(tmp_path: Path, says: Says) -> None:
    parts = [write(tmp_path, number, FORMATS["narrow"]) for number in (0, 1)]
    assert merge_index(tmp_path, parts) == 2 * ROWS + 1
    (tmp_path / "part-00000").rename(tmp_path / "other")
    (tmp_path / "part-00001").rename(tmp_path / "part-00000")
    (tmp_path / "other").rename(tmp_path / "part-00001")
    with pytest.raises(DataError) as refused:
        merge_index(tmp_path, parts)
    says(refused, "part-00000/index.json")


def test_a_part_without_one_of_its_shards_is_not_joined(tmp_path: Path, says: Says) -> None:
    part = write(tmp_path, 0, FORMATS["narrow"])
    (tmp_path / "part-00000" / "shard.00001.mds").unlink()
    with pytest.raises(DataError) as refused:
        merge_index(tmp_path, [part])
    says(refused, "part-00000/shard.00001.mds", "index.json")
