"""Commands of the pages that no other test runs: plans and dry runs as they stand, and shares on small data."""

from pathlib import Path

import pytest

from megaslm.config.source import dump
from tests.chain import Chain
from tests.corpus import content, recipe_of
from tests.forked_cli import run_megaslm
from tests.policy.commands import Command, commands_of, verb_words

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("plan.md", "scaling.md")
COMMANDS = [command for page in PAGES for command in commands_of(ROOT / "docs" / page, ROOT) if not command.needs]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_plans_and_dry_runs_end_well(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = verb_words(command.words)
    assert words is not None
    assert run_megaslm(*words)


def test_shares_are_prepared_and_scored_and_a_mask_is_made(corpus: Path, chain: Chain, tmp_path: Path) -> None:
    recipe, whole, shared = tmp_path / "recipe.yaml", tmp_path / "whole", tmp_path / "shared"
    recipe.write_text(dump(recipe_of(corpus)), encoding="utf-8")
    run_megaslm("prepare", recipe, whole, "--workers", "1")
    for share in (("--share", "1/2"), ("--share", "2/2"), ("--finish",)):
        run_megaslm("prepare", recipe, shared, "--workers", "1", *share)
    assert content(shared) == content(whole)

    scored, masked = tmp_path / "scored", tmp_path / "masked"
    for share in (("--share", "1/2"), ("--share", "2/2"), ("--finish",)):
        run_megaslm("score", "--reference", chain.reference, chain.tokens, scored, *share)
    losses = {name: bytes_ for name, bytes_ in content(scored).items() if name.endswith(".mds")}
    assert losses == {name: bytes_ for name, bytes_ in content(chain.scored).items() if name.endswith(".mds")}
    run_megaslm("mask", scored, masked, "--criterion", "reference", "--keep-ratio", "0.6")
    assert "masked" in run_megaslm("inspect", masked)
