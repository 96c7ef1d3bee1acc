"""The manifest is read as it was written, or refused with a reason."""

import hashlib
import json
from pathlib import Path

import pytest

from megaslm.config.recipe import Bos
from megaslm.dataset.manifest import (
    DomainSplit,
    Manifest,
    Packing,
    Part,
    Reference,
    SourceFile,
    read_manifest,
    write_manifest,
)
from megaslm.errors import DataError
from tests.messages import Says


def manifest() -> Manifest:
    part = Part(name="part-00000", rows=3, tokens_sha256="ab", ref_loss_sha256="cd", index_sha256="ef", bytes=100)
    return Manifest(
        kind="scored",
        name="n",
        megaslm_version="0",
        recipe_sha256="r",
        seq_len=8,
        vocab_size=100,
        tokenizer_sha256="t",
        tokenizer_files={"tokenizer.json": "ab"},
        eos_id=2,
        bos_id=None,
        domains=("a",),
        licences={"a": "MIT"},
        splits={"train": {"a": DomainSplit(rows=3, tokens=20, documents=4, parts=(part,))}},
        sources=(SourceFile(path="é.txt", bytes=1, start=0, stop=1, sha256="00"),),
        reference=Reference(
            weights_sha256="w",
            name="ref",
            precision="fp32",
            document_isolation=True,
            window=8,
            stride=8,
            batch_rows=8,
            dataset_sha256="d",
        ),
    )


def test_written_and_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(("bos", "overlap_tokens"), [("none", 1), ("document", 1), ("row", 0)])
def test_where_rows_have_bos(tmp_path: Path, bos: Bos, overlap_tokens: int) -> None:
    packed = manifest().model_copy(update={"packing": Packing.with_bos(bos), "bos_id": 1})
    write_manifest(tmp_path, packed)
    found = read_manifest(tmp_path)
    assert (found.packing.bos, found.packing.overlap_tokens) == (bos, overlap_tokens)
    assert found.bos_in_rows == (None if bos == "none" else 1)


def test_rows_of_earlier_builds_have_no_bos(tmp_path: Path) -> None:
    """Whatever the tokenizer has."""
    fields = manifest().model_copy(update={"bos_id": 1}).model_dump(mode="json")
    del fields["packing"]["bos"]
    unsigned = json.dumps({"checksum": "0" * 64, **fields}, indent=1)
    checksum = hashlib.sha256(unsigned.encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(unsigned.replace("0" * 64, checksum, 1))
    found = read_manifest(tmp_path)
    assert (found.packing.bos, found.packing.overlap_tokens, found.bos_in_rows) == ("none", 1, None)


def test_the_file_begins_with_the_checksum_of_the_rest(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    content = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    checksum = json.loads(content)["checksum"]
    assert next(iter(json.loads(content))) == "checksum"
    assert hashlib.sha256(content.replace(checksum, "0" * 64).encode()).hexdigest() == checksum


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"rows": 3', '"rows": 4'),
        ('"name": "n"', '"name": "m"'),
        ("\n", "\r"),
        ("\n", "\r\n"),
        ('"a"', "'a'"),
        ("}", ""),
    ],
)
def test_a_manifest_edited_by_hand(tmp_path: Path, before: str, after: str, says: Says) -> None:
    write_manifest(tmp_path, manifest())
    path = tmp_path / "manifest.json"
    head, _, tail = path.read_bytes().rpartition(before.encode())
    path.write_bytes(head + after.encode() + tail)
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path)
    says(refused, "manifest.json")


def test_a_manifest_without_its_checksum(tmp_path: Path, says: Says) -> None:
    write_manifest(tmp_path, manifest())
    content = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    del content["checksum"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path)
    says(refused, tmp_path / "manifest.json")


def test_no_folder(tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path / "nowhere")
    says(refused, tmp_path / "nowhere")


def test_no_manifest(tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path)
    says(refused, tmp_path, "`megaslm prepare`")


@pytest.mark.parametrize("version", [1, 7])
def test_another_schema_version(tmp_path: Path, version: int, says: Says) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": version, "whatever": 1}))
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path)
    says(refused, tmp_path / "manifest.json", version)


@pytest.mark.parametrize("text", ["{", "{}", "[]", ""])
def test_a_corrupt_manifest(tmp_path: Path, text: str, says: Says) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path)
    says(refused, "manifest.json")


@pytest.mark.parametrize("domain", ["../../elsewhere", "/elsewhere", "a/b", ".."])
def test_a_domain_that_would_lead_out_of_the_dataset(tmp_path: Path, domain: str, says: Says) -> None:
    written = manifest()
    elsewhere = {"splits": {"train": {domain: written.splits["train"]["a"]}}, "domains": (domain,)}
    write_manifest(tmp_path, written.model_copy(update=elsewhere))
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path)
    says(refused, "manifest.json")
