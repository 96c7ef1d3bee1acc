"""BOS is found missing, and found where it must not be, though every hash is right."""

from pathlib import Path

import numpy as np
import pytest

from megaslm.config.recipe import Bos
from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import read_manifest, write_manifest
from megaslm.dataset.rows import RowReader
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.inspect.verify import verify
from megaslm.slm.valid_targets import valid_targets
from tests.inspected import BOS_ID, EOS_ID, SEQ_LEN, make_inspected
from tests.messages import Says

PART = "train/a/part-00000"
LETTER = 100


def found_in(dataset: Path) -> list[str]:
    return [f"{problem.path} {problem.finding}" for problem in verify(dataset, workers=1).problems]


def put(dataset: Path, *changes: tuple[int, int, int], shard_bytes: int = 100_000) -> None:
    """Write the first part of `a` anew with other tokens, each given as row, place and id; the manifest knows of it."""
    manifest = read_manifest(dataset)
    share = manifest.splits["train"]["a"]
    tokens = RowReader(dataset, "train", "a", "part-00000").rows(0, share.parts[0].rows)["tokens"].copy()
    before = int(valid_targets(tokens, EOS_ID).sum())
    for row, place, token in changes:
        tokens[row, place] = token
    for path in (dataset / PART).iterdir():
        path.unlink()
    (dataset / PART).rmdir()
    with part_writer(dataset / PART, RowFormat(SEQ_LEN, manifest.vocab_size, shard_bytes=shard_bytes)) as writer:
        writer.write(tokens.astype(np.uint16), 0)
    parts = (writer.part, *share.parts[1:])
    merge_index(dataset / "train/a", list(parts))
    targets = share.tokens + int(valid_targets(tokens, EOS_ID).sum()) - before
    changed = {"a": share.model_copy(update={"parts": parts, "tokens": targets})}
    splits = {"train": {**manifest.splits["train"], **changed}}
    write_manifest(dataset, manifest.model_copy(update={"splits": splits}))


@pytest.mark.parametrize("bos", ["none", "document", "row"])
@pytest.mark.parametrize("shard_bytes", [100_000, 60])
def test_what_was_packed_is_intact(tmp_path: Path, bos: Bos, shard_bytes: int) -> None:
    make_inspected(tmp_path, scored=False, bos=bos)
    put(tmp_path, shard_bytes=shard_bytes)
    assert found_in(tmp_path) == []


@pytest.mark.parametrize(
    ("bos", "changes"),
    [
        ("document", [(0, 0, LETTER)]),
        ("document", [(1, 6, LETTER)]),
        ("document", [(0, 3, BOS_ID)]),
        ("document", [(2, 0, BOS_ID)]),
        ("document", [(1, 4, BOS_ID)]),
        ("row", [(0, 0, LETTER), (2, 0, LETTER)]),
        ("row", [(1, 1, BOS_ID)]),
    ],
    ids=["first of the part", "after EOS", "in a document", "in a document, first of a row", "a letter",
         "first of rows", "second of a row"],
)  # fmt: skip
def test_bos_that_is_missing_or_misplaced(
    tmp_path: Path, bos: Bos, changes: list[tuple[int, int, int]], says: Says
) -> None:
    make_inspected(tmp_path, scored=False, bos=bos)
    put(tmp_path, *changes)
    (problem,) = found_in(tmp_path)
    says(problem, PART, f"row {changes[0][0]}", f"place {changes[0][1]}")


def test_an_id_of_a_text_may_be_that_of_bos_where_rows_have_none(tmp_path: Path) -> None:
    make_inspected(tmp_path, scored=False)
    put(tmp_path, (0, 3, BOS_ID))
    assert found_in(tmp_path) == []


def test_after_a_shard_that_cannot_be_read_the_next_row_may_begin_either_way(tmp_path: Path) -> None:
    make_inspected(tmp_path, scored=False, bos="document")
    put(tmp_path, shard_bytes=60)
    # The first shard is empty, and each of the others has a row.
    shards = sorted((tmp_path / PART).glob("*.mds"))[1:]
    assert len(shards) == 4
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    (problem,) = found_in(tmp_path)
    assert shards[0].name in problem
