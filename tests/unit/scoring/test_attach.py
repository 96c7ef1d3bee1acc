"""An attached column: each line at its target, the other rows as they were, and what does not fit is refused."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from megaslm.config.recipe import Bos
from megaslm.dataset.manifest import SCORES, AttachedName, Manifest, read_manifest
from megaslm.dataset.packing import RowPacker
from megaslm.dataset.rows import RowReader, unpack_mask
from megaslm.errors import ConfigError, DataError
from megaslm.inspect.dataset_facts import dataset_facts
from megaslm.inspect.row_text import read_row
from megaslm.inspect.row_view import show_row
from megaslm.inspect.verify import verify
from megaslm.scoring import column_file, column_places, part_threads
from megaslm.scoring.attach_job import AttachRequest, attach, default_of
from megaslm.scoring.mask import mask_rule
from megaslm.scoring.mask_job import MaskRequest, mask
from megaslm.slm.valid_targets import valid_targets
from tests.columns import write_column
from tests.inspected import DOCUMENTS, EOS_ID, SEQ_LEN, make_inspected
from tests.messages import Says, line_with

BOS: tuple[Bos, ...] = ("none", "document", "row")
BOOL = {"value": pa.bool_()}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return make_inspected(tmp_path / "tokens", scored=False).folder


@pytest.fixture(autouse=True)
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines, rows and documents are read in pieces that end anywhere."""
    monkeypatch.setattr(column_file, "_BATCH_LINES", 3)
    monkeypatch.setattr(part_threads, "_TARGETS_AT_ONCE", SEQ_LEN)
    monkeypatch.setattr(column_places, "_TOKENS_AT_ONCE", SEQ_LEN)


def rows_of(dataset: Path) -> Iterator[dict[str, np.ndarray]]:
    """The rows of each domain."""
    for domain in read_manifest(dataset).splits["train"]:
        reader = RowReader(dataset, "train", domain)
        yield reader.rows(0, len(reader))


def column_of(dataset: Path, name: str) -> np.ndarray:
    return np.concatenate([rows[name] for rows in rows_of(dataset)])


def valid_of(dataset: Path) -> np.ndarray:
    return valid_targets(column_of(dataset, "tokens"), EOS_ID)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def attached(dataset: Path, file: Path, name: AttachedName = "weight", **options: object) -> Manifest:
    return attach(AttachRequest(dataset, file, name, dataset.parent / "out", **options))  # type: ignore[arg-type]


def is_intact(dataset: Path) -> bool:
    found = verify(dataset)
    return (found.problems, found.warnings) == ((), ())


@pytest.mark.parametrize("scored", [False, True])
def test_a_line_by_row_is_at_its_target(tmp_path: Path, scored: bool) -> None:
    dataset = make_inspected(tmp_path / "dataset", scored=scored).folder
    valid = valid_of(dataset)
    named = np.random.default_rng(0).random(valid.shape) < 0.4
    row, position = named.nonzero()
    values = np.arange(1, len(row) + 1, dtype=np.float32) / 8 * (-1) ** np.arange(len(row))
    columns = {"row": row, "position": position, "value": values}
    file = write_column(tmp_path / "column.parquet", dataset, columns, lines_a_group=4)

    manifest = attached(dataset, file, default=0.5)
    expected = np.full(valid.shape, 0.5, np.float32)
    expected[row, position] = values
    assert np.array_equal(column_of(tmp_path / "out", "weight"), np.where(valid, expected, 0))
    for theirs, ours in zip(rows_of(dataset), rows_of(tmp_path / "out"), strict=True):
        assert set(ours) == {*theirs, "weight"}
        assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)
    record = manifest.columns["weight"]
    assert (record.file, record.addressed_by, record.default) == ("column.parquet", "row", 0.5)
    assert (record.lines, record.targets) == (len(row), (named & valid).sum())
    before = read_manifest(dataset)
    assert (manifest.kind, manifest.reference) == (before.kind, before.reference)
    assert manifest.tokens_fingerprint() == before.tokens_fingerprint()
    assert is_intact(tmp_path / "out")
    (share, _) = dataset_facts(tmp_path / "out").shares
    of_share = slice(0, share.rows)
    assert share.mean_weight == pytest.approx(expected[of_share][valid[of_share]].mean())


@pytest.mark.parametrize("bos", BOS)
@pytest.mark.parametrize("with_domain", [False, True])
def test_a_line_by_document_is_at_its_tokens(tmp_path: Path, bos: Bos, with_domain: bool) -> None:
    """The numbers of the lines are packed as `prepare` packs ids; 0 is what no line names."""
    dataset = make_inspected(tmp_path / "dataset", scored=False, bos=bos).folder
    lines: list[tuple[str, int, int, int]] = []
    packed = []
    document = 0
    for domain, parts in DOCUMENTS.items():
        document = 0 if with_domain else document
        for texts in parts:
            packer, numbers_of = RowPacker(SEQ_LEN, 0, bos=bos, bos_id=0), []
            for text in texts:
                length = len(text.encode())
                numbers = np.zeros(length, np.int64)
                for start, stop in ((0, 1), (1, 3), (length - 1, length)):
                    lines.append((domain, document, start, stop))
                    numbers[start:stop] = len(lines)
                numbers_of.append(numbers)
                document += 1
            packed.append(np.concatenate([packer.add(numbers_of), packer.finish()])[:, 1:])
    columns = dict(zip(("domain", "document", "start", "stop"), zip(*lines, strict=True), strict=True))
    columns["value"] = values = np.arange(1, len(lines) + 1) / 4
    if not with_domain:
        del columns["domain"]
    attached(dataset, write_column(tmp_path / "column.parquet", dataset, columns, lines_a_group=5), default=0)
    expected = np.append(0, values)[np.concatenate(packed)]
    assert np.array_equal(column_of(tmp_path / "out", "weight"), np.where(valid_of(dataset), expected, 0))
    assert is_intact(tmp_path / "out")


def test_an_eos_has_the_value_of_the_line_that_ends_after_it(tokens: Path, tmp_path: Path) -> None:
    length = len("abcdefghijkl")
    columns = {"document": [0, 1], "start": [length, 0], "stop": [length + 1, 1], "value": [3.0, 4.0]}
    attached(tokens, write_column(tmp_path / "column.parquet", tokens, columns), default=0)
    found = column_of(tmp_path / "out", "weight")
    ids = column_of(tokens, "tokens")
    # The first token of a document is no target, so that the second line covers none.
    (row,), (position,) = found.nonzero()
    assert (ids[row, position + 1], found[row, position]) == (EOS_ID, 3.0)
    assert read_manifest(tmp_path / "out").columns["weight"].targets == 1


@pytest.mark.parametrize("name", ["target_mask", "selected"])
def test_a_mask_is_stored_as_masks_are(tokens: Path, tmp_path: Path, name: AttachedName) -> None:
    valid = valid_of(tokens)
    row, position = (np.random.default_rng(1).random(valid.shape) < 0.5).nonzero()
    values = np.random.default_rng(2).random(len(row)) < 0.5
    columns = {"row": row, "position": position, "value": values}
    file = write_column(tmp_path / "column.parquet", tokens, columns, types=BOOL)
    manifest = attached(tokens, file, name)
    assert attached(tokens, file, name) == manifest
    expected = np.full(valid.shape, name == "target_mask")
    expected[row, position] = values
    expected &= valid
    stored = column_of(tmp_path / "out", name)
    found = stored.astype(bool) if name == "target_mask" else unpack_mask(stored, SEQ_LEN)
    assert np.array_equal(found, expected)
    assert is_intact(tmp_path / "out")
    shares = dataset_facts(tmp_path / "out").shares
    counted = sum(share.targets for share in shares)
    if name == "target_mask":
        assert (manifest.kind, manifest.target_mask, counted) == ("tokens", True, expected.sum())
        assert manifest.tokens_fingerprint() != read_manifest(tokens).tokens_fingerprint()
    else:
        assert (manifest.kind, manifest.mask, counted) == ("masked", None, valid.sum())
        selected = [share.selected_share for share in shares]
        assert sum(part * share.targets for part, share in zip(selected, shares, strict=True)) == expected.sum()


def test_a_column_outlives_what_is_made_of_the_dataset(tmp_path: Path) -> None:
    scored = make_inspected(tmp_path / "scored", scored=True).folder
    (scored / SCORES).write_text("{}")
    file = write_column(tmp_path / "column.parquet", scored, {"row": [1], "position": [2], "value": [7.0]})
    attached(scored, file)
    assert (tmp_path / "out" / SCORES).read_text() == "{}"
    (tmp_path / "out" / SCORES).unlink()
    manifest = mask(MaskRequest(tmp_path / "out", tmp_path / "masked", mask_rule("reference", "0.5", None)))
    assert manifest.columns == read_manifest(tmp_path / "out").columns
    assert np.array_equal(column_of(tmp_path / "masked", "weight"), column_of(tmp_path / "out", "weight"))
    assert is_intact(tmp_path / "masked")


def test_a_row_shows_its_weights(tokens: Path, tmp_path: Path, says: Says) -> None:
    columns = {"row": [1, 1], "position": [0, 2], "value": [-0.5, 3.0]}
    attached(tokens, write_column(tmp_path / "column.parquet", tokens, columns))
    row = read_row(tmp_path / "out", "train", 1)
    valid = valid_of(tokens)[1]
    assert row.weight == (
        None,
        *(
            value if is_valid else None
            for value, is_valid in zip([-0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0], valid.tolist(), strict=True)
        ),
    )
    output = io.StringIO()
    show_row(Console(file=output, width=90), row)
    says(line_with(output.getvalue(), "-0.5"), "3", f"{valid.sum()} targets")


def test_what_a_later_mask_excludes_has_no_weight(tokens: Path, tmp_path: Path) -> None:
    weighted, mask_file = tmp_path / "weighted", tmp_path / "mask.parquet"
    columns = {"row": [0, 0], "position": [0, 1], "value": [3.0, 4.0]}
    attach(AttachRequest(tokens, write_column(tmp_path / "column.parquet", tokens, columns), "weight", weighted))
    write_column(mask_file, weighted, {"row": [0], "position": [1], "value": [False]}, types=BOOL)
    attached(weighted, mask_file, "target_mask")
    assert column_of(tmp_path / "out", "weight")[0, :3].tolist() == [3.0, 0.0, 1.0]
    assert is_intact(tmp_path / "out")


def test_splits_and_empty_files(tokens: Path, tmp_path: Path) -> None:
    columns = {"split": ["train"], "domain": ["b"], "row": [0], "position": [0], "value": [5.0]}
    attached(tokens, write_column(tmp_path / "column.parquet", tokens, columns), default=0)
    first_of_b = read_manifest(tokens).splits["train"]["a"].rows
    assert np.argwhere(column_of(tmp_path / "out", "weight")).tolist() == [[first_of_b, 0]]
    empty = write_column(tmp_path / "empty.parquet", tokens, {"row": [], "position": [], "value": []})
    manifest = attach(AttachRequest(tokens, empty, "weight", tmp_path / "ones"))
    assert (manifest.columns["weight"].lines, manifest.columns["weight"].targets) == (0, 0)
    assert np.array_equal(column_of(tmp_path / "ones", "weight"), valid_of(tokens))


def test_the_number_of_threads_makes_no_difference(tokens: Path, tmp_path: Path) -> None:
    columns = {"document": [0, 3, 5], "start": [1, 0, 2], "stop": [9, 4, 5], "value": [1.5, 2.5, 3.5]}
    file = write_column(tmp_path / "column.parquet", tokens, columns)
    for workers in (1, 4):
        attach(AttachRequest(tokens, file, "weight", tmp_path / str(workers), workers=workers))
    assert files_of(tmp_path / "1") == files_of(tmp_path / "4")


def test_it_is_attached_once(tokens: Path, tmp_path: Path, says: Says) -> None:
    columns = {"row": [0], "position": [0], "value": [2.0]}
    file = write_column(tmp_path / "column.parquet", tokens, columns)
    manifest = attached(tokens, file)
    before = files_of(tmp_path / "out")
    assert attached(tokens, file) == manifest
    with pytest.raises(DataError) as refused:
        attached(tokens, write_column(tmp_path / "other.parquet", tokens, columns | {"value": [3.0]}))
    says(refused, "out", "columns.weight.sha256")
    with pytest.raises(DataError) as refused:
        attached(tokens, file, default=2)
    says(refused, "out", "columns.weight.default = 1.0 there, 2")
    with pytest.raises(DataError) as refused:
        attach(AttachRequest(tmp_path / "out", file, "weight", tmp_path / "twice"))
    says(refused, "out", "weight", "column.parquet")
    assert files_of(tmp_path / "out") == before
    assert not (tmp_path / "twice").exists()


FINE = {"row": [0, 0, 1], "position": [0, 1, 0], "value": [1.0, 1.0, 1.0]}
OF_DOCUMENTS = {"document": [0, 1], "start": [0, 0], "stop": [2, 2], "value": [1.0, 1.0]}
REFUSED: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "another dataset": (FINE | {"metadata": {"dataset": "0123456789ab"}}, ("0123456789ab",)),
    "too few digits": (FINE | {"metadata": {"dataset": ""}}, ("''",)),
    "no dataset": (FINE | {"metadata": {}}, ("dataset = ",)),
    "no value": ({"row": [0], "position": [0]}, ("value",)),
    "no position": ({"row": [0], "value": [1.0]}, ("position",)),
    "no address": ({"value": [1.0]}, ("row", "position", "document")),
    "two addresses": (FINE | {"document": [0, 0, 0]}, ("row", "document")),
    "values of another type": (FINE | {"types": {"value": pa.float64()}}, ("value", "double", "float32")),
    "rows of another type": (FINE | {"types": {"row": pa.float32()}}, ("row", "float", "integers")),
    "splits of another type": (
        FINE | {"split": [1, 1, 1], "types": {"split": pa.int64()}},
        ("split", "int64", "strings"),
    ),
    "NaN": (FINE | {"value": [1.0, float("nan"), 1.0]}, ("line 2", "nan")),
    "infinite": (FINE | {"value": [1.0, 1.0, float("inf")]}, ("line 3", "inf")),
    "no number": (FINE | {"row": [0, None, 1]}, ("line 2", "row")),
    "a row that is not there": (FINE | {"row": [0, 0, 9]}, ("line 3", "row 9", "0 to 8")),
    "a row of a domain that is not there": (
        FINE | {"domain": ["b", "b", "b"], "row": [0, 0, 3]},
        ("line 3", "row 3", "0 to 2"),
    ),
    "a negative row": (FINE | {"row": [-1, 0, 1]}, ("line 1", "row -1")),
    "a position that is not there": (FINE | {"position": [0, SEQ_LEN, 0]}, ("line 2", f"position {SEQ_LEN}")),
    "a split that is not there": (FINE | {"split": ["train", "heldout", "train"]}, ("line 2", "heldout")),
    "a domain that is not there": (FINE | {"domain": ["a", "a", "c"]}, ("line 3", "train/c", "train/a", "train/b")),
    "out of order": (FINE | {"row": [1, 0, 1]}, ("line 2",)),
    "out of order in its row": (FINE | {"position": [1, 0, 0]}, ("line 2",)),
    "twice": (FINE | {"position": [0, 0, 0]}, ("line 2",)),
    "twice, read in two pieces": (
        {"row": [0, 0, 1, 1], "position": [0, 1, 2, 2], "value": [1.0] * 4},
        ("line 4",),
    ),
    "a document that is not there": (OF_DOCUMENTS | {"document": [0, 8]}, ("line 2", "document 8", "0 to 7")),
    "overlapping spans": (OF_DOCUMENTS | {"document": [0, 0], "start": [0, 1], "stop": [3, 4]}, ("line 2",)),
    "spans that begin together": (OF_DOCUMENTS | {"document": [0, 0]}, ("line 2",)),
    "a span beyond its document": (OF_DOCUMENTS | {"stop": [2, 6]}, ("line 2", "token 6", "has 5")),
    "an empty span": (OF_DOCUMENTS | {"stop": [2, 0]}, ("line 2", "0 to 0")),
    "a negative start": (OF_DOCUMENTS | {"start": [0, -1]}, ("line 2", "-1 to 2")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tokens: Path, tmp_path: Path, case: str, says: Says
) -> None:
    columns, named = REFUSED[case]
    options = {name: columns[name] for name in ("types", "metadata") if name in columns}
    columns = {name: values for name, values in columns.items() if name not in options}
    file = write_column(tmp_path / "column.parquet", tokens, columns, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError) as refused:
        attached(tokens, file)
    says(refused, "column.parquet", *named)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_column_is_refused(tokens: Path, tmp_path: Path, says: Says) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    for name in ("text.parquet", "nowhere.parquet"):
        with pytest.raises(DataError) as refused:
            attached(tokens, tmp_path / name)
        says(refused, name)
    file = write_column(tmp_path / "cut.parquet", tokens, FINE)
    content = bytearray(file.read_bytes())
    content[8:40] = bytes(32)
    file.write_bytes(content)
    with pytest.raises(DataError) as refused:
        attached(tokens, file)
    says(refused, "cut.parquet")
    assert not (tmp_path / "out").exists()


def test_a_mask_needs_the_dataset_of_tokens(tokens: Path, tmp_path: Path, says: Says) -> None:
    scored = make_inspected(tmp_path / "scored", scored=True).folder
    file = write_column(tmp_path / "column.parquet", tokens, FINE | {"value": [True, True, False]}, types=BOOL)
    with pytest.raises(DataError) as refused:
        attached(scored, file, "selected")
    says(refused, "scored", "selected")
    attached(tokens, file, "target_mask")
    with pytest.raises(DataError) as refused:
        attach(AttachRequest(tmp_path / "out", file, "selected", tmp_path / "twice"))
    says(refused, "column.parquet", "out")


@pytest.mark.parametrize(
    ("name", "stated", "value"),
    [("weight", None, 1.0), ("weight", "-0.5", -0.5), ("selected", None, False), ("target_mask", "false", False)],
)
def test_the_default_of_the_command_line(name: AttachedName, stated: str | None, value: bool | float) -> None:
    found = default_of(name, stated)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("name", "stated"), [("weight", "nan"), ("weight", "1e99"), ("weight", "x"), ("selected", "1")]
)
def test_a_default_of_another_kind_is_refused(name: AttachedName, stated: str) -> None:
    with pytest.raises(ConfigError, match=f"^--default {stated}: "):
        default_of(name, stated)
