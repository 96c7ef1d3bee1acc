"""Text to a dataset by several worker processes."""

import shutil
from pathlib import Path

import pytest
import yaml

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.corpus.python_stdlib import standard_library_files
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import DataError
from megaslm.preparing.prepare import prepare
from tests.corpus import content, documents_of, recipe_of
from tests.launched import ROOT
from tests.messages import Says
from tests.watched import Watched


def test_the_number_of_workers_does_not_matter(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    watched = Watched()
    prepare(recipe_of(corpus), tmp_path / "two", workers=2, watcher=watched)
    calls = watched.shown
    assert content(tmp_path / "two") == content(dataset)
    manifest = read_manifest(dataset)
    last = calls[-1]
    assert last.counts["tokens"] == sum(
        share.tokens for domains in manifest.splits.values() for share in domains.values()
    )
    assert last.tasks_done == last.tasks > 10
    assert last.counts["documents"] == sum(
        share.documents for domains in manifest.splits.values() for share in domains.values()
    )
    assert last.done == last.total == sum(path.stat().st_size for path in corpus.rglob("*.jsonl"))
    assert [call.tasks_done for call in calls] == sorted(call.tasks_done for call in calls)


@pytest.mark.slow
def test_the_standard_library_holds_whole_modules_out(tmp_path: Path) -> None:
    recipe = load(Recipe, ROOT / "data" / "python-stdlib.yaml", ["sources.1.keep_fraction=0.1"]).value
    manifest = prepare(recipe, tmp_path / "dataset", workers=2)
    assert manifest.splits["heldout"]["docs"].tokens >= 40_000
    group_of = {Path(file.path).read_bytes(): file.group for file in standard_library_files("python-source")}
    texts = {split: documents_of(tmp_path / "dataset", manifest, split, "source") for split in manifest.splits}
    groups = {split: {group_of[each.encode()] for each in texts[split]} for split in texts}
    assert groups["train"]
    assert not groups["train"] & groups["heldout"]
    documented = documents_of(tmp_path / "dataset", manifest, "heldout", "docs")
    trained = "\n".join(documents_of(tmp_path / "dataset", manifest, "train", "docs"))
    assert not [each for each in documented if each in trained and len(each) > 1000]
    assert yaml.safe_load((ROOT / "data" / "python-stdlib.yaml").read_text())["licence"] in manifest.licences["docs"]


@pytest.mark.slow
def test_a_bad_line_is_named_by_a_worker_process_too(corpus: Path, dataset: Path, tmp_path: Path, says: Says) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    with (tmp_path / "corpus" / "noisy" / "3.jsonl").open("a") as file:
        file.write("{\n")
    recipe = recipe_of(tmp_path / "corpus", tokenizer={"huggingface": str(dataset / "tokenizer")})
    place = (tmp_path / "corpus" / "noisy" / "3.jsonl").stat().st_size - len("{\n")
    with pytest.raises(DataError) as refused:
        prepare(recipe, tmp_path / "dataset", workers=2)
    says(refused, "noisy/3.jsonl", place)
