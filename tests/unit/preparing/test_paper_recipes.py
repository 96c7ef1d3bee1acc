"""The recipes of data/ read what is published, as it is published."""

import re
import shlex
import socket
from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.dataset.manifest import Manifest
from megaslm.errors import DataError
from megaslm.preparing.prepare import prepare
from tests.corpus import documents_of
from tests.messages import Says
from tests.own_text import make_tokenizer
from tests.published import LOOK_ALIKES

ROOT = Path(__file__).resolve().parents[3]
OF_THE_HOUSE = ("demo", "python-stdlib", "tora")
"""Their texts are no dataset of the hub."""
RECIPES = sorted(path.stem for path in (ROOT / "data").glob("*.yaml") if path.stem not in OF_THE_HOUSE)
CHOICES = ("seq_len", "bos", "template", "messages_field", "group_field", "exclude", "filters", "keep_fraction")
CHOICES += ("heldout_fraction", "part_bytes")
README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "tokenizer"
    make_tokenizer(folder)
    return folder


def shipped(name: str, tokenizer: Path) -> Recipe:
    return load(Recipe, ROOT / "data" / f"{name}.yaml", [f"tokenizer.huggingface={tokenizer}"]).value


def texts_of(output: Path, manifest: Manifest, domain: str) -> list[str]:
    """The texts of a domain, of both splits."""
    splits = [split for split, domains in manifest.splits.items() if domain in domains]
    return [text for split in splits for text in documents_of(output, manifest, split, domain)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_what_is_published(
    name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = LOOK_ALIKES[name](tmp_path / "corpora")
    recipe = shipped(name, tokenizer)
    manifest = prepare(recipe, tmp_path / "out", workers=1)
    assert set(manifest.domains) == set(expected)
    thinned = manifest.left_out.get("sources.0.keep_fraction", 0)
    assert sum(manifest.left_out.values()) == thinned
    for domain, texts in expected.items():
        found = texts_of(tmp_path / "out", manifest, domain)
        assert len(found) == len(texts) - thinned
        assert set(found) <= set(texts)
    assert (thinned > 0) == any(source.keep_fraction < 1 for source in recipe.sources)
    assert manifest.hub == tuple(dict.fromkeys(source.hub for source in recipe.sources))
    assert prepare(recipe, tmp_path / "out", workers=1) == manifest


@pytest.mark.parametrize("name", RECIPES)
def test_where_the_files_are_missing_the_message_ends_with_the_command(
    name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    recipe = shipped(name, tokenizer)
    hub = recipe.sources[0].hub
    assert hub is not None
    with pytest.raises(DataError) as refused:
        prepare(recipe, tmp_path / "out", workers=1)
    says(refused, tmp_path, hub.repo, hub.revision)
    assert str(refused.value).endswith(hub.command)
    assert hub.command in README.splitlines()
    # What is fetched lies where the recipe looks for it.
    assert all(path.startswith(hub.folder) for source in recipe.sources for path in source.paths if source.hub == hub)


@pytest.mark.parametrize("name", RECIPES)
def test_every_choice_says_whose_it_is(name: str) -> None:
    lines = (ROOT / "data" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines if re.match(rf"\s*(- )?({'|'.join(CHOICES)}):", line)]
    assert len(chosen) >= 2
    assert [line for line in chosen if not re.search(r"  # (ours|paper)(: \S.*)?$", line)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_pinned_and_in_the_table(name: str) -> None:
    recipe = load(Recipe, ROOT / "data" / f"{name}.yaml").value
    assert f"`{name}.yaml`" in README
    for source in recipe.sources:
        assert source.hub is not None
        assert re.fullmatch("[0-9a-f]{40}", source.hub.revision)
        assert source.hub.repo in README


def test_what_is_prepared_is_named_as_in_the_configurations(dataset: Path) -> None:
    """Every dataset of the paper's runs is the output of a command of the README, whose recipe and settings load."""
    commands = re.findall(r"^megaslm prepare (data/\S+) (datasets/\S+)(.*)$", README, re.MULTILINE)
    made = {output for _, output, _ in commands}
    for recipe, output, rest in commands:
        words = shlex.split(rest, comments=True)
        settings = [word for word in words if word != "--set"]
        loaded = load(Recipe, ROOT / recipe, settings).value
        tokenizer, rows = ("mistral-7b", 4096) if "mistral-4k" in output else ("tinyllama-1.1b", 2048)
        assert (loaded.tokenizer.huggingface, loaded.seq_len) == (f"models/{tokenizer}", rows)
    for name in ("open-web-math", "math-curated"):
        for rows in ("tinyllama-2k", "mistral-4k"):
            assert f"datasets/{name}-{rows}/tokens" in made


@pytest.mark.parametrize("place", ["paths", "tokenizer"])
def test_a_name_on_the_hub_for_a_folder_gets_the_command(
    place: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    (tmp_path / "a.txt").write_text("text " * 100)
    tokenizer, text = str(dataset / "tokenizer"), "a.txt"
    if place == "paths":
        text = "owner/math"
    else:
        tokenizer = "owner/model"
    source = {"domain": "d", "reader": "text", "paths": [text]}
    recipe = {"name": "n", "licence": "MIT", "seq_len": 8, "tokenizer": {"huggingface": tokenizer}, "sources": [source]}
    with pytest.raises(DataError) as refused:
        prepare(Recipe.model_validate(recipe), tmp_path / "out", workers=1)
    says(refused, "hf download owner/")


def _no_network(*_: object) -> None:
    raise AssertionError("the network is touched")
