"""What a recipe may say."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from megaslm.config.load import load
from megaslm.config.recipe import Recipe

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
    ("changes", "message"),
    [
        ({"tokenizer": {}}, "exactly one of huggingface, sentencepiece, train_sentencepiece must be set; found none"),
        ({"tokenizer": {"huggingface": "a", "sentencepiece": "b"}}, "found huggingface and sentencepiece"),
        (
            {"tokenizer": {"train_sentencepiece": {"vocab_size": 400, "domains": ["x"]}}},
            "names x; the sources'",
        ),
        ({"licence": None}, "no licence for d"),
        ({"sources": [{"domain": "d", "reader": "jsonl"}]}, "reader jsonl needs paths"),
        ({"sources": [{**SOURCE, "reader": "python-docs"}]}, "takes no paths"),
        ({"sources": [{**SOURCE, "domain": "../up"}]}, "should match pattern"),
        ({"sources": [{**SOURCE, "keep_fraction": 0}]}, "greater than 0"),
        ({"sources": [{**SOURCE, "domain": None}]}, "exactly one of domain and domain_field"),
        ({"sources": [{**SOURCE, "domain_field": "f"}]}, "exactly one of domain and domain_field"),
        ({"sources": [{**SOURCE, "domain": None, "domain_field": "f"}]}, "domain_field and domains go together"),
        ({"sources": [{**SOURCE, "domains": {"a": "b"}}]}, "domain_field and domains go together"),
        ({"sources": [{**SOURCE, "domain": None, "domain_field": "f", "domains": {"a": None}}]}, "every value"),
        ({"sources": [{**SOURCE, "reader": "text", "group_field": "f"}]}, "needs a reader with fields"),
        ({"sources": [{**SOURCE, "separator": "-"}]}, "separator is a line"),
        ({"sources": [{**SOURCE, "filters": [{"name": "length"}]}]}, "needs min_characters or max_characters"),
        ({"sources": [{**SOURCE, "filters": [{"name": "regex"}]}]}, "exactly one of keep and drop"),
        ({"sources": [{**SOURCE, "filters": [{"name": "regex", "keep": "("}]}]}, "is not a regular expression"),
        ({"sources": [{**SOURCE, "filters": [{"name": "regex", "keep": "a", "drop": "b"}]}]}, "exactly one of keep"),
        ({"sources": []}, "at least 1 item"),
        ({"heldout_fraction": 1}, "less than 1"),
        ({"shard_bytes": 2**32}, "less than 4294967296"),
        ({"seqlen": 8}, "Extra inputs are not permitted"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({**RECIPE, **changes})
