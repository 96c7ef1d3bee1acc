"""The command that makes or fetches what is missing, by the names of the folders of configs/ and data/."""

import shlex
from pathlib import Path

import pytest

from megaslm.config.hub import PUBLISHED, hub_hint
from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.launch.command import PROJECT
from megaslm.launch.findings import Findings, Reach
from megaslm.launch.inputs import look_at_run, look_at_text
from megaslm.launch.making import making_command
from tests.messages import Says
from tests.shipped import CONFIGS, NAMES

MISTRAL = "--set seq_len=4096 --set tokenizer.huggingface=models/mistral-7b"


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


@pytest.mark.parametrize(
    ("name", "seq_len", "settings"),
    [("open-web-math-tinyllama-2k", 2048, ""), ("math-curated-mistral-4k", 4096, f" {MISTRAL}")],
)
def test_text_is_prepared_by_its_recipe(name: str, seq_len: int, settings: str) -> None:
    place = f"datasets/{name}/tokens"
    recipe = name.rsplit("-", 2)[0]
    assert making_command(place, seq_len) == f"megaslm prepare data/{recipe}.yaml {place}{settings}"


def test_a_command_is_told_only_where_it_is_known() -> None:
    named = "datasets/open-web-math-tinyllama-2k"
    scored = f"megaslm score --reference models/r {named}/tokens {named}/scored"
    assert making_command(f"{named}/scored", 2048, "models/r") == scored
    unknown = (f"{named}/scored", f"{named}/other", "datasets/web-tinyllama-2k/tokens", "datasets/demo/tokens")
    assert [making_command(place, 2048) for place in unknown] == [None] * len(unknown)


def test_the_commands_of_data_are_those_of_the_messages() -> None:
    page = (PROJECT / "data" / "README.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith("megaslm prepare data/")]
    commands = [command for command in commands if " datasets/" in command]
    told = []
    for command in commands:
        words = shlex.split(command)
        recipe = load(Recipe, words[2], words[5::2]).value
        told.append(making_command(words[3], recipe.seq_len))
    assert len(told) > 5
    assert told == commands


@pytest.mark.parametrize("name", NAMES)
def test_models_are_fetched_from_where_configs_says(name: str) -> None:
    model = load(RunConfig, CONFIGS / name).value.model
    if model.hub is not None and model.from_pretrained is not None:
        assert PUBLISHED[Path(model.from_pretrained).name] == model.hub
        assert model.hub.command(model.from_pretrained) in hub_hint(model.from_pretrained, "tokenizer")


def test_all_that_a_run_of_the_paper_lacks_is_told_with_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    config = load(RunConfig, CONFIGS / "rho-math-1b" / "slm.yaml").value
    (tmp_path / "data").symlink_to(PROJECT / "data")
    monkeypatch.chdir(tmp_path)
    findings = Findings(Reach.ALL, "")
    look_at_run(findings, config, ranks=32)
    commands = ("hf download TinyLlama", "megaslm prepare data/math-curated.yaml", "megaslm score --reference")
    says("\n".join(findings.problems), *commands)


def test_text_and_tokenizer_that_a_recipe_lacks_are_told_with_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    recipe = load(Recipe, PROJECT / "data" / "open-web-math.yaml")
    monkeypatch.chdir(tmp_path)
    findings = Findings(Reach.ALL, "")
    look_at_text(findings, recipe)
    says("\n".join(findings.problems), "hf download open-web-math/open-web-math", "hf download TinyLlama")
