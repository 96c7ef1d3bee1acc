"""Text files to a dataset, from beginning to end."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.preparing import prepare as preparing
from megaslm.preparing.prepare import prepare
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import tokenizer_sha256
from tests.corpus import documents_of, recipe_of, text
from tests.messages import Says
from tests.watched import Watched


def test_every_document_is_there_once_in_the_split_of_its_group(corpus: Path, dataset: Path) -> None:
    manifest = read_manifest(dataset)
    for domain in ("clean", "noisy"):
        found = {split: documents_of(dataset, manifest, split, domain) for split in ("train", "heldout")}
        records = [
            json.loads(line)
            for path in sorted((corpus / domain).iterdir())
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        assert sorted(found["train"] + found["heldout"]) == sorted(record["text"] for record in records)
        books = {
            split: {record["book"] for record in records if record["text"] in set(texts)}
            for split, texts in found.items()
        }
        assert books["heldout"]
        assert not books["train"] & books["heldout"]
        order = [record["text"] for record in records]
        assert found["train"] == sorted(found["train"], key=order.index)


def test_the_manifest_counts_what_is_there(corpus: Path, dataset: Path) -> None:
    manifest = read_manifest(dataset)
    check_layout(dataset)
    assert manifest.domains == ("clean", "noisy")
    assert manifest.licences == {"clean": "CC0", "noisy": "CC0"}
    assert manifest.tokenizer_sha256 == tokenizer_sha256(dataset / "tokenizer")
    assert list(dict.fromkeys(source.path for source in manifest.sources)) == [
        str(corpus / domain / f"{file}.jsonl") for domain in ("clean", "noisy") for file in range(4)
    ]
    for source in manifest.sources:
        stretch = Path(source.path).read_bytes()[source.start : source.stop]
        assert hashlib.sha256(stretch).hexdigest() == source.sha256
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            reader = RowReader(dataset, split, domain)
            rows = reader.rows(0, len(reader))
            assert len(reader) == share.rows == sum(part.rows for part in share.parts)
            assert int(valid_targets(rows["tokens"], manifest.eos_id).sum()) == share.tokens
            assert set(rows["domain"].tolist()) == {manifest.domains.index(domain)}
            assert share.documents == len(documents_of(dataset, manifest, split, domain))
    assert len(manifest.splits["train"]["noisy"].parts) > 1
    assert sorted(path.name for path in dataset.iterdir()) == [
        "heldout", "inputs.json", "manifest.json", "tokenizer", "train",
    ]  # fmt: skip


def test_one_file_is_divided_among_parts(corpus: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(path.read_bytes() for path in sorted((corpus / "noisy").iterdir())))
    source = {"domain": "noisy", "reader": "jsonl", "paths": [str(whole)], "group_field": "book"}
    recipe = recipe_of(corpus, sources=[source], tokenizer={"train_sentencepiece": {"vocab_size": 330}})
    manifest = prepare(recipe, tmp_path / "dataset", workers=1)
    assert len(manifest.splits["train"]["noisy"].parts) == len(manifest.sources) == -(-whole.stat().st_size // 10_000)
    assert [source.start for source in manifest.sources[1:]] == [source.stop for source in manifest.sources[:-1]]
    records = [json.loads(line)["text"] for line in whole.read_text(encoding="utf-8").splitlines()]
    found = [documents_of(tmp_path / "dataset", manifest, split, "noisy") for split in ("train", "heldout")]
    assert sorted(found[0] + found[1]) == sorted(records)
    assert found[0] == sorted(found[0], key=records.index)


def test_domains_by_field_and_filters(corpus: Path, tmp_path: Path) -> None:
    records = [
        {"text": f"{name} {text(seed)}", "meta": {"set": name}} for seed in range(90) for name in ("A", "B", "C")
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    source = {
        "domain_field": "meta.set",
        "domains": {"A": "alpha", "B": "beta", "C": None},
        "reader": "jsonl",
        "paths": [str(tmp_path / "mixed.jsonl")],
        "filters": [{"name": "length", "min_characters": 200}],
    }
    manifest = prepare(recipe_of(corpus, sources=[source]), tmp_path / "dataset", workers=1)
    assert manifest.domains == ("alpha", "beta")
    assert manifest.licences == {"alpha": "CC0", "beta": "CC0"}
    for name, domain in (("A", "alpha"), ("B", "beta")):
        expected = [each["text"] for each in records if each["meta"] == {"set": name} and len(str(each["text"])) >= 200]
        found = [documents_of(tmp_path / "dataset", manifest, split, domain) for split in ("train", "heldout")]
        assert sorted(found[0] + found[1]) == sorted(map(str, expected))
    short = sum(len(str(each["text"])) < 200 for each in records if each["meta"] != {"set": "C"})
    assert manifest.left_out == {"sources.0.domains.C": 90, "sources.0.filters.0": short}


def test_a_finished_dataset_is_left_as_it_is(corpus: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    monkeypatch.setattr(preparing, "run_task", lambda *_: pytest.fail("a task ran"))
    assert prepare(recipe_of(corpus), dataset) == read_manifest(dataset)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_a_sentencepiece_file_and_a_huggingface_folder_serve_as_tokenizers(
    corpus: Path, dataset: Path, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceTrainer

    texts = [text(seed) for seed in range(200)]
    with (tmp_path / "words.model").open("wb") as model:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=300, byte_fallback=True, minloglevel=2,
            model_type="bpe", normalization_rule_name="identity",
        )  # fmt: skip
    recipe = recipe_of(corpus, tokenizer={"sentencepiece": str(tmp_path / "words.model")})
    assert prepare(recipe, tmp_path / "a", workers=1).vocab_size == 300
    recipe = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")})
    manifest = prepare(recipe, tmp_path / "b", workers=1)
    assert manifest.tokenizer_sha256 == read_manifest(dataset).tokenizer_sha256
    assert manifest.splits == read_manifest(dataset).splits


def test_rows_of_a_large_vocabulary_are_wide(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(dataset / "tokenizer", tokenizer)
    state = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"unused {number}": number for number in range(len(vocabulary), 70_000)}
    (tokenizer / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    prepare(recipe_of(corpus, tokenizer={"huggingface": str(tokenizer)}), tmp_path / "wide", workers=1)
    wide, narrow = (RowReader(folder, "train", "clean") for folder in (tmp_path / "wide", dataset))
    assert wide[0]["tokens"].dtype == np.uint32
    assert np.array_equal(wide.rows(0, len(wide))["tokens"], narrow.rows(0, len(narrow))["tokens"])


def test_it_tells_what_it_does_and_why_a_worker_has_no_task(
    corpus: Path, tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little text is prepared in a moment, and has no advice."""
    source = {"domain": "clean", "reader": "jsonl", "paths": [str(corpus / "clean")]}
    recipe = recipe_of(corpus, sources=[source], part_bytes=64_000_000)
    first, again = Watched(), Watched()
    prepare(recipe, tmp_path / "dataset", workers=2, watcher=first)
    says("\n".join(first.lines), "330", "1 task for 2 workers", str(tmp_path / "dataset"))
    assert "part_bytes" not in "\n".join(first.lines)
    last = first.shown[-1]
    assert (last.tasks_done, last.done) == (last.tasks, last.total)
    assert last.counts["documents"] == sum(len(path.read_text().splitlines()) for path in corpus.glob("clean/*.jsonl"))
    prepare(recipe, tmp_path / "dataset", watcher=again)
    says("\n".join(again.lines), str(tmp_path / "dataset"))
    monkeypatch.setattr("megaslm.preparing.prepare.WORTH_DIVIDING_BYTES", 1)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(b"".join(path.read_bytes() for path in sorted((corpus / "clean").glob("*")))))
    for name, paths in (("plain", source["paths"]), ("packed", [str(packed)])):
        large = Watched()
        recipe = recipe_of(corpus, sources=[{**source, "paths": paths}], part_bytes=64_000_000)
        prepare(recipe, tmp_path / name, workers=2, watcher=large)
        says(next(line for line in large.lines if "1 task for 2 workers" in line), "part_bytes" * (name == "plain"))
