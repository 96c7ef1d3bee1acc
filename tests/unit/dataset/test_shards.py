"""Parts are whole or absent, indices are joined with care, rows come back as they were written."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import Part
from megaslm.dataset.rows import RowReader
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import DataError
from tests.messages import Says
from tests.small_shards import FORMATS, ROWS, SEQ_LEN, bits_of, entropies_of, losses_of, make, tokens_of, write


@pytest.mark.parametrize("row_format", FORMATS.values(), ids=FORMATS)
def test_rows_come_back_as_they_were_written(tmp_path: Path, row_format: RowFormat) -> None:
    make(tmp_path, row_format)
    check_layout(tmp_path)
    reader = RowReader(tmp_path, "train", "a")
    tokens = np.concatenate([tokens_of(part, row_format.tokens_dtype.name) for part in (0, 1, 12)])
    everything = reader.rows(0, len(reader))
    assert everything["tokens"].dtype == row_format.tokens_dtype
    assert np.array_equal(everything["tokens"], tokens)
    assert (everything["domain"].dtype, set(everything["domain"].tolist())) == (np.uint16, {3})
    for row in (0, 1, ROWS - 1, ROWS, 2 * ROWS + 1, len(tokens) - 1):
        assert np.array_equal(reader[row]["tokens"], tokens[row])
        assert np.array_equal(reader.rows(max(0, row - 20), row + 1)["tokens"], tokens[max(0, row - 20) : row + 1])
    if row_format.scored:
        losses = np.concatenate([losses_of(part) for part in (0, 1, 12)])
        assert everything["ref_loss"].dtype == np.float16
        assert np.array_equal(everything["ref_loss"], losses)
    assert ("ref_entropy" in everything) == row_format.entropy
    if row_format.entropy:
        entropies = np.concatenate([entropies_of(part) for part in (0, 1, 12)])
        assert everything["ref_entropy"].dtype == np.float16
        assert np.array_equal(everything["ref_entropy"], entropies)
    assert ("selected" in everything) == row_format.masked
    if row_format.masked:
        assert everything["selected"].dtype == np.uint8
        assert np.array_equal(everything["selected"], np.concatenate([bits_of(part) for part in (0, 1, 12)]))


def test_what_is_read_may_be_changed(tmp_path: Path) -> None:
    make(tmp_path, FORMATS["narrow"])
    reader = RowReader(tmp_path, "train", "a")
    reader.rows(0, 3)["tokens"][:] = 0
    assert np.array_equal(reader[0]["tokens"], tokens_of(0)[0])


def test_a_part_can_be_read_alone(tmp_path: Path) -> None:
    make(tmp_path, FORMATS["narrow"])
    reader = RowReader(tmp_path, "train", "a", part="part-00012")
    assert np.array_equal(reader.rows(0, len(reader))["tokens"], tokens_of(12))


def test_streaming_reads_the_same_rows(tmp_path: Path) -> None:
    from megaslm.dataset.mosaic import StreamingDataset

    make(tmp_path, FORMATS["compressed"])
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "train" / "a", copy)
    rows = [row["tokens"] for row in StreamingDataset(local=str(copy), batch_size=1, shuffle=False)]
    assert np.array_equal(np.stack(rows), np.concatenate([tokens_of(part) for part in (0, 1, 12)]))


def test_a_part_knows_its_content(tmp_path: Path) -> None:
    part = write(tmp_path, 1, FORMATS["entropy"])
    index = tmp_path / "part-00001" / "index.json"
    files = [path for path in index.parent.iterdir() if path != index]
    assert len(files) > 1
    assert part == Part(
        name="part-00001",
        rows=ROWS + 1,
        tokens_sha256=hashlib.sha256(tokens_of(1).tobytes()).hexdigest(),
        ref_loss_sha256=hashlib.sha256(losses_of(1).tobytes()).hexdigest(),
        ref_entropy_sha256=hashlib.sha256(entropies_of(1).tobytes()).hexdigest(),
        index_sha256=hashlib.sha256(index.read_bytes()).hexdigest(),
        bytes=sum(path.stat().st_size for path in files),
    )
    assert write(tmp_path, 1, FORMATS["scored"]).ref_entropy_sha256 is None
    masked = write(tmp_path, 1, FORMATS["masked"])
    assert masked.selected_sha256 == hashlib.sha256(bits_of(1).tobytes()).hexdigest()
    assert masked.ref_loss_sha256 is None
    assert write(tmp_path, 1, FORMATS["narrow"]).ref_loss_sha256 is None


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with part_writer(tmp_path / "part-00000", FORMATS["narrow"]) as writer:
            writer.write(tokens_of(0), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_the_parts_name_before_it_is_whole(tmp_path: Path, says: Says) -> None:
    with part_writer(tmp_path / "part-00000", FORMATS["narrow"]) as writer:
        writer.write(tokens_of(0), 0)
        assert not (tmp_path / "part-00000").exists()
        with pytest.raises(RuntimeError) as refused:
            _ = writer.part
        says(refused, "part-00000")
    assert (tmp_path / "part-00000" / "index.json").is_file()


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    for name in ("part-00000", ".unfinished-part-00000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left").touch()
    write(tmp_path, 0, FORMATS["narrow"])
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000"]
    assert not (tmp_path / "part-00000" / "left").exists()


@pytest.mark.parametrize(
    ("tokens", "losses", "named"),
    [
        (tokens_of(0, "int64"), losses_of(0), "int64 of shape (40, 7)"),
        (tokens_of(0)[:, 1:], losses_of(0), "(40, 6)"),
        (tokens_of(0), None, "float16 (40, 6)"),
        (tokens_of(0), losses_of(0).astype("float32"), "float32"),
        (tokens_of(0), losses_of(0)[:-1], "(39, 6)"),
        (tokens_of(0), losses_of(0) * np.nan, "ref_loss"),
        (tokens_of(0), -losses_of(0), "ref_loss"),
    ],
)
def test_rows_of_another_form_are_refused(
    tmp_path: Path, tokens: np.ndarray, losses: np.ndarray | None, named: str, says: Says
) -> None:
    with pytest.raises(DataError) as refused, part_writer(tmp_path / "part-00000", FORMATS["scored"]) as writer:
        writer.write(tokens, 0, losses)
    says(refused, named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entropies", "named"),
    [
        (None, "float16 (40, 6)"),
        (entropies_of(0)[:, 1:], "(40, 5)"),
        (entropies_of(0) + np.float16(np.inf), "ref_entropy"),
    ],
)
def test_entropies_of_another_form_are_refused(
    tmp_path: Path, entropies: np.ndarray | None, named: str, says: Says
) -> None:
    with pytest.raises(DataError) as refused, part_writer(tmp_path / "part-00000", FORMATS["entropy"]) as writer:
        writer.write(tokens_of(0), 0, losses_of(0), entropies)
    says(refused, named)


@pytest.mark.parametrize(
    ("bits", "named"),
    [
        (None, "uint8 (40, 1)"),
        (bits_of(0)[1:], "(39, 1)"),
        (np.zeros((ROWS, SEQ_LEN), np.uint8), "(40, 6)"),
        (bits_of(0).astype(np.bool_), "bool"),
    ],
)
def test_bits_of_another_form_are_refused(tmp_path: Path, bits: np.ndarray | None, named: str, says: Says) -> None:
    with pytest.raises(DataError) as refused, part_writer(tmp_path / "part-00000", FORMATS["masked"]) as writer:
        writer.write(tokens_of(0), 0, selected=bits)
    says(refused, named)


def test_rows_have_a_mask_or_what_it_was_made_of(says: Says) -> None:
    with pytest.raises(ValueError) as refused:
        RowFormat(SEQ_LEN, 65_536, scored=True, masked=True)
    says(refused, "ref_loss")


@pytest.mark.parametrize(("row_format", "column"), [("narrow", "ref_loss"), ("scored", "ref_entropy")])
def test_values_without_a_column_are_refused(tmp_path: Path, row_format: str, column: str, says: Says) -> None:
    with pytest.raises(DataError) as refused, part_writer(tmp_path / "part-00000", FORMATS[row_format]) as writer:
        writer.write(tokens_of(0), 0, losses_of(0), entropies_of(0))
    says(refused, column)


def test_there_is_no_entropy_without_losses(says: Says) -> None:
    with pytest.raises(ValueError) as refused:
        RowFormat(SEQ_LEN, 65_536, entropy=True)
    says(refused, "entropy")


def test_a_shard_with_other_content_than_its_index_says_is_not_read(tmp_path: Path, says: Says) -> None:
    make(tmp_path, FORMATS["narrow"])
    path = tmp_path / "train" / "a" / "part-00000" / "shard.00000.mds"
    path.write_bytes(bytes([path.read_bytes()[0] + 1]) + path.read_bytes()[1:])
    with pytest.raises(DataError) as refused:
        RowReader(tmp_path, "train", "a").rows(0, 1)
    says(refused, "shard.00000.mds", "16")


def test_what_a_dataset_does_not_have_is_named(tmp_path: Path, says: Says) -> None:
    make(tmp_path, FORMATS["narrow"])
    with pytest.raises(DataError) as refused:
        RowReader(tmp_path, "heldout", "a")
    says(refused, "heldout")
    with pytest.raises(DataError) as refused:
        RowReader(tmp_path, "train", "b")
    says(refused, "domain b")
    with pytest.raises(DataError) as refused:
        RowReader(tmp_path, "train", "a", part="part-00002")
    says(refused, "part-00002", "part-00000", "part-00001", "part-00012")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 3), (0, 134), (5, 2)])
def test_rows_outside_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    make(tmp_path, FORMATS["narrow"])
    reader = RowReader(tmp_path, "train", "a")
    with pytest.raises(IndexError):
        reader.rows(start, stop)
    with pytest.raises(IndexError):
        _ = reader[133]
