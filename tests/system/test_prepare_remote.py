"""Text from object storage, datasets to it: the same bytes as from folder to folder, whatever goes wrong."""

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.config.cluster import Share
from megaslm.config.recipe import Recipe
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import ConfigError, DataError
from megaslm.preparing.prepare import finish, prepare, prepare_share
from tests.corpus import content, recipe_of
from tests.messages import Says
from tests.s3 import Answer, Bucket, FaultyS3, Rule, Truncate

pytest.importorskip("s3fs")

ROOT = Path(__file__).resolve().parents[2]


def upload(bucket: Bucket, corpus: Path) -> None:
    for path in sorted(corpus.rglob("*.jsonl")):
        bucket.put(f"text/{path.relative_to(corpus).as_posix()}", path.read_bytes())


def remote_recipe(bucket: Bucket, corpus: Path, dataset: Path) -> Recipe:
    """The recipe of the corpus, read from a folder and by a glob."""
    paths = {"clean": bucket.url("text/clean"), "noisy": bucket.url("text/noi*/*.jsonl")}
    sources = [
        {"domain": name, "reader": "jsonl", "group_field": "book", "paths": [path]} for name, path in paths.items()
    ]
    return recipe_of(corpus, sources=sources, tokenizer={"huggingface": str(dataset / "tokenizer")})


def objects(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(f"{prefix}/"): bucket.get(key) for key in bucket.stored_keys(f"{prefix}/")}


def test_text_from_a_faulty_store_is_the_same_text(
    faulty_s3: FaultyS3, corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    upload(faulty_s3.bucket, corpus)
    faulty_s3.proxy.rules += [
        Rule(Answer(500), methods=("GET",), fraction=0.2, seed=1),
        Rule(Truncate(100), methods=("GET",), fraction=0.1, seed=2),
    ]
    recipe = remote_recipe(faulty_s3.bucket, corpus, dataset)
    manifest = prepare(recipe, tmp_path / "dataset", workers=1)
    assert faulty_s3.proxy.faults > 0
    assert manifest.splits == read_manifest(dataset).splits
    local = {(Path(source.path).name, source.start): source.sha256 for source in read_manifest(dataset).sources}
    assert {(Path(source.path).name, source.start): source.sha256 for source in manifest.sources} == local
    assert all(source.version for source in manifest.sources)
    assert prepare(recipe, tmp_path / "dataset") == manifest
    faulty_s3.proxy.rules.clear()
    faulty_s3.bucket.put("text/clean/0.jsonl", b'{"text": "other"}\n')
    with pytest.raises(DataError) as refused:
        prepare(recipe, tmp_path / "dataset")
    says(refused, "clean/0.jsonl ", tmp_path / "dataset", BUCKET=faulty_s3.bucket.name)


def test_a_dataset_on_object_storage_is_the_same_dataset(
    s3: Bucket, corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    recipe, working = recipe_of(corpus), tmp_path / "working"
    manifest = prepare(recipe, s3.url("ds"), working=working, workers=1)
    assert objects(s3, "ds") == content(dataset)
    assert list(working.iterdir()) == []
    assert prepare(recipe, s3.url("ds"), working=working) == manifest
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus, seq_len=16), s3.url("ds"), working=working)
    says(refused, s3.url("ds"), "'words'", BUCKET=s3.name)


def test_shares_and_kills_on_the_way_to_object_storage(
    s3: Bucket, corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    recipe, working = recipe_of(corpus), tmp_path / "working"
    process = multiprocessing.get_context("fork").Process(
        target=prepare, args=(recipe, s3.url("ds")), kwargs={"working": working, "workers": 1}
    )
    process.start()
    while len(list(working.glob(".prepare/task-*.json"))) < 3 and process.is_alive():
        process.join(0.002)
    process.kill()
    process.join()
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus, seq_len=16), s3.url("ds"), working=tmp_path / "other", workers=1)
    says(refused, s3.url("ds"), BUCKET=s3.name)
    for number in (1, 2):
        prepare_share(recipe, s3.url("ds"), Share(number, 2), working=working, workers=1)
    assert not list(working.rglob("*.mds"))
    finish(recipe, s3.url("ds"), working=working)
    assert objects(s3, "ds") == content(dataset)


@pytest.mark.slow
def test_the_command_writes_to_object_storage_with_two_workers(
    s3: Bucket, corpus: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_of(corpus).model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "megaslm", "prepare", str(tmp_path / "recipe.yaml"), s3.url("ds")]
    options = ["--work", str(tmp_path / "working"), "--workers", "2"]
    ran = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert objects(s3, "ds") == content(dataset)


def test_a_working_folder_goes_with_a_url_and_nothing_else(corpus: Path, tmp_path: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare(recipe_of(corpus), "s3://bucket/ds")
    says(refused, "s3://bucket/ds", "--work")
    with pytest.raises(ConfigError) as refused:
        prepare(recipe_of(corpus), tmp_path / "ds", working=tmp_path)
    says(refused, "--work ", tmp_path / "ds")


def test_a_finished_dataset_is_no_working_folder(
    s3: Bucket, corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    shutil.copytree(dataset, tmp_path / "finished")
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(corpus), s3.url("ds"), working=tmp_path / "finished")
    says(refused, tmp_path / "finished")
    assert content(tmp_path / "finished") == content(dataset)
