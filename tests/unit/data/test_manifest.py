"""The manifest is read as it was written, or refused with a reason."""

import json
from pathlib import Path

import pytest

from megaslm.data.manifest import DomainSplit, Manifest, Part, Reference, SourceFile, read_manifest, write_manifest
from megaslm.errors import DataError


def manifest() -> Manifest:
    part = Part(name="part-00000", rows=3, tokens_sha256="ab", ref_loss_sha256="cd", bytes=100)
    return Manifest(
        kind="scored",
        name="n",
        megaslm_version="0",
        recipe_sha256="r",
        seq_len=8,
        vocab_size=100,
        tokenizer_sha256="t",
        eos_id=2,
        bos_id=None,
        domains=("a",),
        licences={"a": "MIT"},
        splits={"train": {"a": DomainSplit(rows=3, tokens=20, documents=4, parts=(part,))}},
        sources=(SourceFile(path="é.txt", bytes=1, sha256="00"),),
        reference=Reference(
            weights_sha256="w",
            name="ref",
            precision="fp32",
            document_isolation=True,
            window=8,
            stride=8,
            dataset_sha256="d",
        ),
    )


def test_written_and_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_one_written_before_there_was_entropy(tmp_path: Path) -> None:
    content = manifest().model_dump(mode="json")
    del content["reference"]["entropy"]
    del content["splits"]["train"]["a"]["parts"][0]["ref_entropy_sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path) == manifest()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such dataset folder"):
        read_manifest(tmp_path / "nowhere")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a dataset, or unfinished: run `megaslm prepare` again"):
        read_manifest(tmp_path)


def test_another_schema_version(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 7, "whatever": 1}))
    with pytest.raises(DataError, match="schema version 7; this MegaSLM reads version 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 1}'])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="damaged, prepare the dataset again"):
        read_manifest(tmp_path)
