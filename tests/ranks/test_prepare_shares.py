"""Many jobs make one dataset: each a share of the tasks, and in the end one that joins them."""

import multiprocessing
import shutil
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
from tests.watched import Watched

fork = multiprocessing.get_context("fork")


def test_shares_done_at_the_same_time_make_the_same_bytes(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    recipe, output = recipe_of(corpus), tmp_path / "dataset"
    # The second share is asked for twice, as a scheduler does that takes a job for lost.
    jobs = [
        fork.Process(target=prepare_share, args=(recipe, output, Share(number, 3)), kwargs={"workers": 1})
        for number in (1, 2, 2, 3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0, 0]
    with pytest.raises(DataError, match="unfinished"):
        read_manifest(output)
    manifest = finish(recipe, output)
    assert content(output) == content(dataset)
    assert finish(recipe, output) == manifest
    prepare_share(recipe, output, Share(1, 3))


def test_what_is_missing_is_named_and_can_be_done_by_a_plain_run(
    corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    recipe, output = recipe_of(corpus), tmp_path / "dataset"
    prepare_share(recipe, output, Share(2, 2), workers=1)
    with pytest.raises(DataError) as refused:
        finish(recipe, output)
    says(refused, "(0, 2, 4, ", "n % COUNT + 1")
    prepare(recipe, output, workers=1)
    assert content(output) == content(dataset)


def test_shares_keep_out_whoever_would_do_everything(corpus: Path, dataset: Path, tmp_path: Path, says: Says) -> None:
    recipe, output = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")}), tmp_path / "dataset"
    refusals = []

    def meanwhile() -> None:
        for everything in (prepare, finish):
            with pytest.raises(DataError) as caught:
                everything(recipe, output)
            refusals.append(str(caught.value))

    prepare_share(recipe, output, Share(1, 20), workers=1, watcher=Watched(meanwhile))
    (refused,) = set(refusals)
    says(refused, output)


def misspelled(recipe: Recipe) -> Recipe:
    """The recipe with a field that no record has."""
    settings = recipe.model_dump(mode="json", exclude_unset=True)
    for source in settings["sources"]:
        source["text_field"] = "txet"
    return Recipe.model_validate(settings)


def test_a_corrected_recipe_begins_anew_where_no_task_was_done(
    corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    recipe, output = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")}), tmp_path / "dataset"
    with pytest.raises(DataError) as refused:
        prepare_share(misspelled(recipe), output, Share(1, 2), workers=1)
    says(refused, "sources.0.text_field = txet")
    assert (output / "tokenizer").is_dir()
    for share in (Share(1, 2), Share(2, 2)):
        prepare_share(recipe, output, share, workers=1)
    expected = read_manifest(dataset)
    assert finish(recipe, output).tokens_fingerprint() == expected.tokens_fingerprint()


def test_another_recipe_keeps_what_is_done_and_leaves_those_at_work_alone(
    corpus: Path, dataset: Path, tmp_path: Path, says: Says
) -> None:
    recipe, output = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")}), tmp_path / "dataset"
    other = recipe.model_copy(update={"seq_len": 64})
    refusals = []

    def meanwhile() -> None:
        if not list(output.glob(".prepare/task-*.json")):
            with pytest.raises(DataError) as refused:
                prepare_share(other, output, Share(2, 20), workers=1)
            refusals.append(refused)

    prepare_share(recipe, output, Share(1, 20), workers=1, watcher=Watched(meanwhile))
    says(refusals[0], output)
    for begin in (lambda: prepare(other, output), lambda: prepare_share(other, output, Share(2, 20), workers=1)):
        with pytest.raises(DataError) as refused:
            begin()
        says(refused, output)
    prepare(recipe, output, workers=1)
    assert read_manifest(output).tokens_fingerprint() == read_manifest(dataset).tokens_fingerprint()


def test_files_that_change_between_shares_are_noticed(corpus: Path, dataset: Path, tmp_path: Path, says: Says) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    recipe = recipe_of(tmp_path / "corpus", tokenizer={"huggingface": str(dataset / "tokenizer")})
    prepare_share(recipe, tmp_path / "dataset", Share(1, 20), workers=1)
    (tmp_path / "corpus" / "noisy" / "3.jsonl").touch()
    with pytest.raises(DataError) as refused:
        prepare_share(recipe, tmp_path / "dataset", Share(2, 20), workers=1)
    says(refused, tmp_path / "dataset")


def test_shares_cover_everything_once() -> None:
    shares = [Share.parse(f"{number}/4").of(list(range(10))) for number in range(1, 5)]
    assert shares == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


@pytest.mark.parametrize("written", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4"])
def test_what_is_no_share_is_refused(written: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        Share.parse(written)
    says(refused, f"--share {written}: ")
