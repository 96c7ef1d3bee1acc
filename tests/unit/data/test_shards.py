"""Parts are whole or absent, indices are joined with care, rows come back as they were written."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megaslm.data.manifest import DomainSplit, Manifest, Part, Reference, read_manifest, write_manifest
from megaslm.data.shards import RowFormat, RowReader, check_layout, merge_index, part_name, part_writer
from megaslm.errors import DataError

SEQ_LEN, ROWS = 6, 40


def tokens_of(part: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(part).integers(0, 60_000, (ROWS + part, SEQ_LEN + 1)).astype(dtype)


def losses_of(part: int) -> np.ndarray:
    return np.random.default_rng(part).uniform(0, 20, (ROWS + part, SEQ_LEN)).astype(np.float16)


def entropies_of(part: int) -> np.ndarray:
    return np.random.default_rng(1000 + part).uniform(0, 11, (ROWS + part, SEQ_LEN)).astype(np.float16)


def write(folder: Path, part: int, row_format: RowFormat) -> Part:
    tokens = tokens_of(part, row_format.tokens_dtype.name)
    with part_writer(folder / part_name(part), row_format) as writer:
        for start in range(0, len(tokens), 7):
            losses = losses_of(part)[start : start + 7] if row_format.scored else None
            entropies = entropies_of(part)[start : start + 7] if row_format.entropy else None
            writer.write(tokens[start : start + 7], 3, losses, entropies)
    return writer.part


def make(dataset: Path, row_format: RowFormat, parts: tuple[int, ...] = (0, 1, 12)) -> None:
    folder = dataset / "train" / "a"
    written = tuple(write(folder, part, row_format) for part in parts)
    rows = merge_index(folder, [part.name for part in written])
    share = DomainSplit(rows=rows, tokens=0, documents=0, parts=written)
    reference = Reference(
        weights_sha256="", name="", precision="fp32", document_isolation=True, window=SEQ_LEN, stride=SEQ_LEN,
        dataset_sha256="", entropy=row_format.entropy,
    )  # fmt: skip
    manifest = Manifest(
        kind="scored" if row_format.scored else "tokens", name="n", megaslm_version="0", recipe_sha256="",
        seq_len=SEQ_LEN, vocab_size=row_format.vocab_size, tokenizer_sha256="", eos_id=2, bos_id=None,
        domains=("a",), licences={}, splits={"train": {"a": share}}, sources=(),
        reference=reference if row_format.scored else None,
    )  # fmt: skip
    write_manifest(dataset, manifest)


# Small shards, so that a part has several.
FORMATS = {
    "narrow": RowFormat(SEQ_LEN, 65_536, shard_bytes=700),
    "wide": RowFormat(SEQ_LEN, 65_537, shard_bytes=700),
    "scored": RowFormat(SEQ_LEN, 65_536, scored=True, shard_bytes=700),
    "entropy": RowFormat(SEQ_LEN, 65_536, scored=True, entropy=True, shard_bytes=700),
    "compressed": RowFormat(SEQ_LEN, 65_536, scored=True, shard_bytes=700, compression="zstd"),
}


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
    from megaslm.data.stream import StreamingDataset

    make(tmp_path, FORMATS["compressed"])
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "train" / "a", copy)
    rows = [row["tokens"] for row in StreamingDataset(local=str(copy), batch_size=1, shuffle=False)]
    assert np.array_equal(np.stack(rows), np.concatenate([tokens_of(part) for part in (0, 1, 12)]))


def test_a_part_knows_its_content(tmp_path: Path) -> None:
    part = write(tmp_path, 1, FORMATS["entropy"])
    files = [path for path in (tmp_path / "part-00001").iterdir() if path.name != "index.json"]
    assert len(files) > 1
    assert part == Part(
        name="part-00001",
        rows=ROWS + 1,
        tokens_sha256=hashlib.sha256(tokens_of(1).tobytes()).hexdigest(),
        ref_loss_sha256=hashlib.sha256(losses_of(1).tobytes()).hexdigest(),
        ref_entropy_sha256=hashlib.sha256(entropies_of(1).tobytes()).hexdigest(),
        bytes=sum(path.stat().st_size for path in files),
    )
    assert write(tmp_path, 1, FORMATS["scored"]).ref_entropy_sha256 is None
    assert write(tmp_path, 1, FORMATS["narrow"]).ref_loss_sha256 is None


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with part_writer(tmp_path / "part-00000", FORMATS["narrow"]) as writer:
            writer.write(tokens_of(0), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_the_parts_name_before_it_is_whole(tmp_path: Path) -> None:
    with part_writer(tmp_path / "part-00000", FORMATS["narrow"]) as writer:
        writer.write(tokens_of(0), 0)
        assert not (tmp_path / "part-00000").exists()
        with pytest.raises(RuntimeError, match="is not finished"):
            _ = writer.part
    assert (tmp_path / "part-00000" / "index.json").is_file()


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    for name in ("part-00000", ".unfinished-part-00000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left").touch()
    write(tmp_path, 0, FORMATS["narrow"])
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000"]
    assert not (tmp_path / "part-00000" / "left").exists()


@pytest.mark.parametrize(
    ("tokens", "losses", "message"),
    [
        (tokens_of(0, "int64"), losses_of(0), r"tokens are int64 of shape \(40, 7\); expected uint16 \(rows, 7\)"),
        (tokens_of(0)[:, 1:], losses_of(0), r"tokens are uint16 of shape \(40, 6\)"),
        (tokens_of(0), None, r"ref_loss is missing; expected float16 \(40, 6\)"),
        (tokens_of(0), losses_of(0).astype("float32"), "ref_loss is float32"),
        (tokens_of(0), losses_of(0)[:-1], r"ref_loss is float16 of shape \(39, 6\)"),
        (tokens_of(0), losses_of(0) * np.nan, "ref_loss has NaN, infinite or negative"),
        (tokens_of(0), -losses_of(0), "ref_loss has NaN, infinite or negative"),
    ],
)
def test_rows_of_another_form_are_refused(
    tmp_path: Path, tokens: np.ndarray, losses: np.ndarray | None, message: str
) -> None:
    with (
        pytest.raises(DataError, match=message),
        part_writer(tmp_path / "part-00000", FORMATS["scored"]) as writer,
    ):
        writer.write(tokens, 0, losses)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entropies", "message"),
    [
        (None, r"ref_entropy is missing; expected float16 \(40, 6\)"),
        (entropies_of(0)[:, 1:], r"ref_entropy is float16 of shape \(40, 5\); expected float16 \(40, 6\)"),
        (entropies_of(0) + np.float16(np.inf), "ref_entropy has NaN, infinite or negative"),
    ],
)
def test_entropies_of_another_form_are_refused(tmp_path: Path, entropies: np.ndarray | None, message: str) -> None:
    with (
        pytest.raises(DataError, match=message),
        part_writer(tmp_path / "part-00000", FORMATS["entropy"]) as writer,
    ):
        writer.write(tokens_of(0), 0, losses_of(0), entropies)


@pytest.mark.parametrize(("row_format", "column"), [("narrow", "ref_loss"), ("scored", "ref_entropy")])
def test_values_without_a_column_are_refused(tmp_path: Path, row_format: str, column: str) -> None:
    with (
        pytest.raises(DataError, match=f"{column} was given for a dataset that has none"),
        part_writer(tmp_path / "part-00000", FORMATS[row_format]) as writer,
    ):
        writer.write(tokens_of(0), 0, losses_of(0), entropies_of(0))


def test_there_is_no_entropy_without_losses() -> None:
    with pytest.raises(ValueError, match="only rows that are scored"):
        RowFormat(SEQ_LEN, 65_536, entropy=True)


SCORED_COLUMNS = "domain (uint16), ref_loss (ndarray:float16:6), tokens (ndarray:uint16:7)"
ENTROPY_COLUMNS = SCORED_COLUMNS.replace("ref_loss", "ref_entropy (ndarray:float16:6), ref_loss")


@pytest.mark.parametrize(
    ("row_format", "found", "expected"),
    [("scored", SCORED_COLUMNS, ENTROPY_COLUMNS), ("entropy", ENTROPY_COLUMNS, SCORED_COLUMNS)],
)
def test_columns_that_are_not_the_manifests_are_named(
    tmp_path: Path, row_format: str, found: str, expected: str
) -> None:
    make(tmp_path, FORMATS[row_format])
    manifest = read_manifest(tmp_path)
    assert manifest.reference is not None
    other = manifest.reference.model_copy(update={"entropy": not manifest.reference.entropy})
    write_manifest(tmp_path, manifest.model_copy(update={"reference": other}))
    with pytest.raises(DataError) as error:
        check_layout(tmp_path)
    assert f"shard.00000.mds has the columns {found}; its manifest says {expected}; remove" in str(error.value)


def test_parts_are_joined_by_number(tmp_path: Path) -> None:
    for part in (0, 99_999, 100_000):
        write(tmp_path, part if part == 0 else 1, FORMATS["narrow"])
        if part:
            (tmp_path / "part-00001").rename(tmp_path / part_name(part))
    rows = merge_index(tmp_path, ["part-100000", "part-99999", "part-00000"])
    assert rows == 3 * ROWS + 2
    listed = [shard["raw_data"]["basename"] for shard in json.loads((tmp_path / "index.json").read_text())["shards"]]
    assert list(dict.fromkeys(name.split("/")[0] for name in listed)) == ["part-00000", "part-99999", "part-100000"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["part-00000", "part-00001", "part-00002"], "part-00002 of 3 parts is missing"),
        (["part-00000"], "part-00001 belongs to another dataset"),
        (["part-00000", "part-00001", "part-00001"], "part-00001 is named twice"),
        (["part-00000", "part-00001", "shard.00000.mds"], "not the name of a part"),
    ],
)
def test_parts_that_do_not_fit_are_not_joined(tmp_path: Path, names: list[str], message: str) -> None:
    write(tmp_path, 0, FORMATS["narrow"])
    write(tmp_path, 1, FORMATS["narrow"])
    with pytest.raises(DataError, match=message):
        merge_index(tmp_path, names)
    assert not (tmp_path / "index.json").exists()


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, r"shard.00001.mds is missing, though index.json lists it with \d+ rows; remove"),
        (cut_shard, r"shard.00001.mds has \d+ bytes, index.json says \d+; remove"),
        (drop_part_index, r"part-00001/index.json is missing; remove"),
        (drop_merged_index, r"a/index.json is missing; remove"),
        (spoil_merged_index, r"a/index.json is not an index of MDS shards"),
        (shorten_merged_index, r"a/index.json counts \d+ rows, the manifest 133; remove"),
        (reorder_merged_index, r"a/index.json does not list the \d+ shards of its 3 parts in order"),
    ],
)
def test_a_damaged_dataset_is_noticed_before_it_is_read(tmp_path: Path, damage: object, message: str) -> None:
    make(tmp_path, FORMATS["narrow"])
    check_layout(tmp_path)
    damage(tmp_path / "train" / "a")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        check_layout(tmp_path)


def test_a_shard_with_other_content_than_its_index_says_is_not_read(tmp_path: Path) -> None:
    make(tmp_path, FORMATS["narrow"])
    path = tmp_path / "train" / "a" / "part-00000" / "shard.00000.mds"
    path.write_bytes(bytes([path.read_bytes()[0] + 1]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"shard.00000.mds does not hold \d+ rows of 16 bytes"):
        RowReader(tmp_path, "train", "a").rows(0, 1)


def test_what_a_dataset_does_not_have_is_named(tmp_path: Path) -> None:
    make(tmp_path, FORMATS["narrow"])
    with pytest.raises(DataError, match="has no split heldout; it has train"):
        RowReader(tmp_path, "heldout", "a")
    with pytest.raises(DataError, match="has no domain b in split train; it has a"):
        RowReader(tmp_path, "train", "b")
    with pytest.raises(DataError, match="has no part-00002; it has part-00000, part-00001, part-00012"):
        RowReader(tmp_path, "train", "a", part="part-00002")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 3), (0, 134), (5, 2)])
def test_rows_outside_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    make(tmp_path, FORMATS["narrow"])
    reader = RowReader(tmp_path, "train", "a")
    with pytest.raises(IndexError):
        reader.rows(start, stop)
    with pytest.raises(IndexError):
        _ = reader[133]
