"""What cannot be prepared is refused by name, and nothing is lost."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from megaslm.config.cluster import Share
from megaslm.config.recipe import Recipe
from megaslm.dataset import output as output_module
from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.errors import DataError, Stopped
from megaslm.preparing.prepare import prepare, prepare_share
from tests.corpus import content, recipe_of
from tests.messages import Says


def targets_in(refused: DataError) -> str:
    """Their number, which depends on the tokenizer that SentencePiece trains."""
    found = re.search(r"(\d+) targets", str(refused))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("change", ["size", "content", "gone"])
def test_changed_files_are_noticed(corpus: Path, tmp_path: Path, change: str, says: Says) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    recipe = recipe_of(tmp_path / "corpus")
    prepare(recipe, tmp_path / "dataset", workers=1)
    path = tmp_path / "corpus" / "noisy" / "2.jsonl"
    if change == "gone":
        path.unlink()
    else:
        written = path.read_text(encoding="utf-8")
        path.write_text(written.replace("noisy", "nosy" if change == "size" else "nasty"), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        prepare(recipe, tmp_path / "dataset", workers=1)
    says(refused, "noisy/2.jsonl")


def test_files_that_change_during_an_interruption_begin_it_anew(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    recipe = recipe_of(tmp_path / "corpus")
    with monkeypatch.context() as patched:
        patched.setattr(output_module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Stopped, match="Ctrl-C"):
            prepare(recipe, tmp_path / "dataset", workers=1)
    path = tmp_path / "corpus" / "noisy" / "2.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("noisy", "nasty"), encoding="utf-8")
    prepare(recipe, tmp_path / "dataset", workers=1)
    prepare(recipe, tmp_path / "afresh", workers=1)
    assert content(tmp_path / "dataset") == content(tmp_path / "afresh")


def test_a_folder_of_another_recipe_is_refused(corpus: Path, dataset: Path, tmp_path: Path, says: Says) -> None:
    other = recipe_of(corpus, seq_len=16)
    with pytest.raises(DataError) as refused:
        prepare(other, dataset, workers=1)
    says(refused, dataset, "'words'")
    small = recipe_of(corpus, seq_len=100_000)
    with pytest.raises(DataError) as refused:
        prepare(small, tmp_path / "unfinished", workers=1)
    says(refused, "seq_len = 100000", TARGETS=targets_in(refused.value))
    with pytest.raises(DataError) as refused:
        prepare(other, tmp_path / "unfinished", workers=1)
    says(refused, tmp_path / "unfinished")


def test_a_folder_of_something_else_is_refused(corpus: Path, tmp_path: Path, says: Says) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus), tmp_path, workers=1)
    says(refused, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def refusal_of(corpus: Path, tmp_path: Path, changes: dict[str, Any]) -> DataError:
    """What is said where one source cannot be prepared; nothing is left that passes for a dataset."""
    source = {"domain": "noisy", "reader": "jsonl", "paths": [str(corpus / "noisy")], **changes.get("source", {})}
    others = {name: value for name, value in changes.items() if name != "source"}
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus, sources=[source], **others), tmp_path / "dataset", workers=1)
    with pytest.raises(DataError):
        read_manifest(tmp_path / "dataset")
    return refused.value


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer": {"huggingface": "nowhere"}}, "tokenizer.huggingface: nowhere"),
        ({"tokenizer": {"huggingface": "."}}, "tokenizer.json"),
        ({"tokenizer": {"sentencepiece": "nowhere.model"}}, "tokenizer.sentencepiece: nowhere.model"),
        ({"source": {"paths": ["nowhere/*.jsonl"]}}, "'nowhere/*.jsonl'"),
        ({"source": {"text_field": "content"}}, "noisy/0.jsonl, line 1"),
    ],
)
def test_what_cannot_be_prepared_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str, says: Says
) -> None:
    monkeypatch.chdir(tmp_path)
    says(refusal_of(corpus, tmp_path, changes), named)


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"source": {"keep_fraction": 1e-12}}, 330),
        ({"tokenizer": {"train_sentencepiece": {"vocab_size": 30_000}}}, 30_000),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_is_named(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], pieces: int, says: Says
) -> None:
    refused = refusal_of(corpus, tmp_path, changes)
    says(refused, pieces, "tokenizer.train_sentencepiece.vocab_size", REASON=refused.__cause__)


def test_an_empty_file_has_no_documents_and_harms_nothing(
    corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    for name in ("00.jsonl", "99.jsonl"):
        (tmp_path / "corpus" / "noisy" / name).touch()
    recipe = recipe_of(tmp_path / "corpus", tokenizer={"huggingface": str(dataset / "tokenizer")})
    manifest = prepare(recipe, tmp_path / "dataset", workers=1)
    whole = read_manifest(dataset)
    for split, domains in whole.splits.items():
        for domain, share in domains.items():
            assert manifest.splits[split][domain].documents == share.documents
    assert {Path(source.path).name for source in manifest.sources if source.bytes == 0} == {"00.jsonl", "99.jsonl"}
    only_empty = {"domain": "noisy", "reader": "jsonl", "paths": [str(tmp_path / "corpus" / "noisy" / "00.jsonl")]}
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus, sources=[only_empty], tokenizer=recipe.tokenizer), tmp_path / "none", workers=1)
    says(refused, "noisy")


def test_a_domain_without_text_is_named(corpus: Path, tmp_path: Path, says: Says) -> None:
    sources = [
        {"domain": name, "reader": "jsonl", "paths": [str(corpus / name)], "keep_fraction": share}
        for name, share in (("clean", 1e-12), ("noisy", 1.0))
    ]
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus, sources=sources), tmp_path / "dataset", workers=1)
    says(refused, "clean", "keep_fraction")


def test_what_a_message_says_can_be_done_where_nothing_was_done(corpus: Path, tmp_path: Path) -> None:
    source = {"domain": "noisy", "reader": "jsonl", "paths": [str(corpus / "noisy")]}
    tokenizer = {"train_sentencepiece": {"vocab_size": 30_000}}
    for share in (Share(1, 2), None):
        with pytest.raises(DataError, match=r"tokenizer\.train_sentencepiece\.vocab_size"):
            make(recipe_of(corpus, sources=[source], tokenizer=tokenizer), tmp_path / "dataset", share)
    wrong = {**source, "text_field": "content"}
    trained = {"huggingface": str(tokenizer_of(corpus, tmp_path))}
    with pytest.raises(DataError, match="text_field"):
        make(recipe_of(corpus, sources=[wrong], tokenizer=trained), tmp_path / "dataset", None)
    manifest = make(recipe_of(corpus, sources=[source]), tmp_path / "dataset", None)
    assert manifest is not None
    assert manifest.domains == ("noisy",)


def test_what_is_in_the_way_of_another_recipe_is_said_with_the_mistake(
    corpus: Path, tmp_path: Path, says: Says
) -> None:
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus, seq_len=100_000), tmp_path / "dataset", workers=1)
    says(refused, "seq_len = 100000", tmp_path / "dataset", TARGETS=targets_in(refused.value))


def make(recipe: Recipe, output: Path, share: Share | None) -> Manifest | None:
    if share is None:
        return prepare(recipe, output, workers=1)
    prepare_share(recipe, output, share, workers=1)
    return None


def tokenizer_of(corpus: Path, folder: Path) -> Path:
    prepare(recipe_of(corpus), folder / "other", workers=1)
    return folder / "other" / "tokenizer"


def test_a_tokenizer_named_amiss_is_refused_by_its_file(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    for number, (origin, named) in enumerate(
        [
            ({"sentencepiece": str(tmp_path / "llama")}, r"llama is not a file; name the model .* tokenizer\.model"),
            ({"sentencepiece": str(tmp_path / "llama" / "tokenizer.model")}, r"tokenizer\.model: not a SentencePiece"),
            ({"huggingface": str(tmp_path / "llama")}, r"llama: no tokenizer\.json; .* `tokenizer\.sentencepiece`"),
        ]
    ):
        with pytest.raises(DataError, match=named):
            prepare(recipe_of(corpus, tokenizer=origin), tmp_path / f"{number}", workers=1)
