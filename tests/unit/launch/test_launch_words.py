"""The words after `megaslm launch` are the verb's, and reach it as they are."""

import click
import pytest

from megaslm.launch_cli import _work


@click.command()
@click.argument("config")
@click.option("--smoke", is_flag=False, flag_value=3, type=int)
def train(config: str, smoke: int | None) -> None:
    """A verb with an option whose value may be left out."""


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["run.yaml"], None),
        (["run.yaml", "--smoke"], 3),
        (["run.yaml", "--smoke", "5"], 5),
        (["--smoke=5", "run.yaml"], 5),
    ],
)
@pytest.mark.parametrize("named", [[], ["train"]])
def test_an_option_may_have_a_value_or_none(words: list[str], value: int | None, named: list[str]) -> None:
    work, given = _work(click.Context(click.Group(commands={"train": train})), [*named, *words])
    assert work.words == ("train", *words)
    assert given == {"config": "run.yaml", "smoke": value}
