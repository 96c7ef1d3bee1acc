"""What a recipe may say."""

from pathlib import Path

import pytest
import yaml

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.errors import ConfigError
from tests.messages import Says

RECIPES = sorted((Path(__file__).resolve().parents[3] / "data").glob("*.yaml"))
SOURCE = {"domain": "d", "reader": "jsonl", "paths": ["x"]}
RECIPE = {"name": "n", "licence": "MIT", "seq_len": 8, "tokenizer": {"huggingface": "folder"}, "sources": [SOURCE]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_house_is_valid(path: Path) -> None:
    recipe = load(Recipe, path).value
    assert recipe.domains
    assert all(recipe.licence_of(source) for source in recipe.sources)


def test_a_source_of_the_standard_library_can_be_thinned(tmp_path: Path) -> None:
    (stdlib,) = (path for path in RECIPES if path.name == "python-stdlib.yaml")
    assert load(Recipe, stdlib, ["sources.1.keep_fraction=0.125"]).value.sources[1].keep_fraction == 0.125
    derived = tmp_path / "derived.yaml"
    derived.write_text(yaml.safe_dump({"base": str(stdlib), "seq_len": 64}))
    assert load(Recipe, derived, ["sources.1.keep_fraction=0.125"]).value.seq_len == 64


def test_domains_are_numbered_in_order() -> None:
    domains = ["b", "a", "b"]
    recipe = Recipe.model_validate({**RECIPE, "sources": [{**SOURCE, "domain": domain} for domain in domains]})
    assert recipe.domains == ("b", "a")


def test_domains_of_a_field_are_numbered_in_order() -> None:
    by_field = {"domain": None, "domain_field": "set", "domains": {"X": "b", "Y": "c", "Z": None, "V": "b"}}
    recipe = Recipe.model_validate({**RECIPE, "sources": [SOURCE, {**SOURCE, **by_field}]})
    assert recipe.domains == ("d", "b", "c")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer": {}}, "train_sentencepiece"),
        ({"tokenizer": {"huggingface": "a", "sentencepiece": "b"}}, "tokenizer"),
        (
            {"tokenizer": {"train_sentencepiece": {"vocab_size": 400, "domains": ["x"]}}},
            "tokenizer",
        ),
        ({"licence": None}, "licence"),
        ({"sources": [{"domain": "d", "reader": "jsonl"}]}, "sources.0: "),
        ({"sources": [{**SOURCE, "reader": "python-docs"}]}, "sources.0: "),
        ({"sources": [{**SOURCE, "domain": "../up"}]}, "sources.0.domain = ../up"),
        ({"sources": [{**SOURCE, "keep_fraction": 0}]}, "sources.0.keep_fraction = 0"),
        ({"sources": [{**SOURCE, "domain": None}]}, "domain_field"),
        ({"sources": [{**SOURCE, "domain_field": "f"}]}, "domain_field"),
        ({"sources": [{**SOURCE, "domain": None, "domain_field": "f"}]}, "domain_field"),
        ({"sources": [{**SOURCE, "domains": {"a": "b"}}]}, "domain_field"),
        ({"sources": [{**SOURCE, "domain": None, "domain_field": "f", "domains": {"a": None}}]}, "sources.0: "),
        ({"sources": [{**SOURCE, "reader": "text", "group_field": "f"}]}, "sources.0: "),
        ({"sources": [{**SOURCE, "separator": "-"}]}, "sources.0: "),
        ({"sources": [{**SOURCE, "filters": [{"name": "length"}]}]}, "min_characters"),
        ({"sources": [{**SOURCE, "filters": [{"name": "regex"}]}]}, "sources.0.filters.0"),
        ({"sources": [{**SOURCE, "filters": [{"name": "regex", "keep": "("}]}]}, "sources.0.filters.0"),
        ({"sources": [{**SOURCE, "filters": [{"name": "regex", "keep": "a", "drop": "b"}]}]}, "sources.0.filters.0"),
        ({"sources": [{**SOURCE, "text_field": "a", "template": "{b}"}]}, "text_field"),
        ({"sources": [{**SOURCE, "messages_field": "a", "template": "{b}"}]}, "messages_field"),
        ({"sources": [{**SOURCE, "reader": "text", "template": "{b}"}]}, "template"),
        ({"sources": [{**SOURCE, "reader": "tree", "messages_field": "b"}]}, "messages_field"),
        *(
            ({"sources": [{**SOURCE, "template": template}]}, "template")
            for template in ("no field", "{a", "a}", "{}", "{ a }", "{a!r}", "{a:>8}")
        ),
        ({"sources": [{**SOURCE, "hub": {"repo": "web", "folder": "x"}}]}, "sources.0.hub.repo = web"),
        ({"sources": [{**SOURCE, "hub": {"repo": "a/b", "folder": "-x"}}]}, "sources.0.hub.folder = -x"),
        ({"sources": [{**SOURCE, "hub": {"repo": "a/b", "folder": "x", "files": ["--y"]}}]}, "sources.0.hub.files"),
        ({"sources": []}, "sources"),
        ({"heldout_fraction": 1}, "heldout_fraction = 1"),
        ({"shard_bytes": 2**32}, "4294967296"),
        ({"seqlen": 8}, "seqlen = 8"),
        ({"sources": [{**SOURCE, "chat_format": "tora"}]}, "chat_format = tora"),
        ({"sources": [{**SOURCE, "messages_field": "m", "chat_format": "chatml"}]}, "chat_format = chatml"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(
    tmp_path: Path, changes: dict[str, object], named: str, says: Says
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load(Recipe, path)
    says(refused, path, named)
