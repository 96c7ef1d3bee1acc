"""Expressions as criteria: what they hold, and what is refused."""

from pathlib import Path

import pytest

from megaslm.config.expression import expression_of
from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from tests.messages import Says


@pytest.mark.parametrize(
    ("criterion", "terms"),
    [
        ("loss - ref_loss", ("loss", "ref_loss", "-")),
        (" ref_a-ref_b ", ("ref_a", "ref_b", "-")),
        ("-history", ("history", "neg()")),
        ("loss - (ref_loss - 1)", ("loss", "ref_loss", 1.0, "-", "-")),
        ("loss - ref_loss - 1", ("loss", "ref_loss", "-", 1.0, "-")),
        ("2 * 3 / 4 * loss", (1.5, "loss", "*")),
        (
            "min(loss, ref_loss, -2) / abs(entropy)",
            ("loss", "ref_loss", "min()", -2.0, "min()", "entropy", "abs()", "/"),
        ),
        ("max(1, 2) + abs(-3) * loss", (2.0, 3.0, "loss", "*", "+")),
        ("1e-3 * loss", (0.001, "loss", "*")),
    ],
)
def test_an_expression_in_postfix_order(criterion: str, terms: tuple[str | float, ...]) -> None:
    expression = expression_of(criterion)
    assert expression is not None
    assert expression.terms == terms


def test_a_named_criterion_is_none() -> None:
    assert expression_of("excess") is None
    assert expression_of("entropy") is None


def test_an_expression_tells_what_it_names() -> None:
    expression = expression_of("max(loss, entropy) - ref_loss * history - 2")
    assert expression is not None
    assert expression.names == {"loss", "entropy", "ref_loss", "history"}
    assert expression.columns == {"ref_loss", "history"}


REFUSED = {
    "a misspelt criterion": ("exces", "exces"),
    "a lone name": ("history", "history"),
    "a call of another function": ("__import__('os')", "__import__('os')"),
    "a call of a call": ("__import__('os').system('true') - loss", "__import__('os').system('true')"),
    "an attribute": ("loss.real - 1", "loss.real"),
    "an item": ("loss[0] - 1", "loss[0]"),
    "a power": ("loss ** 2", "loss ** 2"),
    "a comparison": ("loss > 2", "loss > 2"),
    "a condition": ("loss if 1 else 2", "loss if 1 else 2"),
    "a function": ("(lambda: loss)()", "(lambda: loss)()"),
    "an assignment": ("(x := loss) - 1", "(x := loss)"),
    "a list of numbers": ("loss - [1, 2]", "[1, 2]"),
    "a text": ("loss - 'one'", "'one'"),
    "a truth": ("loss - True", "True"),
    "an imaginary number": ("loss - 1j", "1j"),
    "a plus sign": ("+loss", "+loss"),
    "a function as a name": ("loss - max", "max"),
    "abs of two": ("abs(loss, 2)", "abs(loss, 2)"),
    "min of one": ("min(loss)", "min(loss)"),
    "an option of a function": ("min(loss, 2, key=abs)", "key=abs"),
    "unpacked values": ("min(*loss, 2)", "*loss"),
    "numbers alone": ("3 - 2", "3 - 2"),
    "a division by 0": ("loss / (1 - 1)", "loss / (1 - 1)"),
    "numbers divided by 0": ("loss - 1 / 0", "1 / 0"),
    "a number that is too large": ("loss - 1e999", "1e309"),
    "a product that is too large": ("loss - 1e30 * 1e30", "1e+30 * 1e+30"),
    "a whole number that is too large": ("loss - " + 190 * "9", 190 * "9"),
    "half an expression": ("loss -", "loss -"),
    "two lines": ("loss\n- 1; import os", "import os"),
    "nothing": ("''", "''"),
    "too many characters": ("-" * 300 + "loss", "304"),
    "parentheses without end": ("(" * 199, "((("),
}


@pytest.mark.parametrize(("criterion", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_expression_is_refused(criterion: str, named: str, says: Says) -> None:
    with pytest.raises(ValueError) as refused:
        expression_of(criterion)
    says(refused, named)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (("criterion=loss ** 2",), ("slm.criterion", "loss ** 2")),
        (("criterion=loss - entropy", "mode=running"), ("mode running", "loss - entropy")),
        (("criterion=-ref_loss", "mode=running"), ("mode running", "-ref_loss")),
        (("criterion=loss - ref_loss", "mode=running", "scope=sequence"), ("scope sequence",)),
        (("criterion=loss - ref_loss", "policy=dataset"), ("policy dataset", "loss - ref_loss")),
        (
            ("criterion=loss - entropy", "weight.by=sigmoid", "weight.temperature=1"),
            ("weight.by sigmoid", "loss - entropy"),
        ),
    ],
    ids=["no expression", "running by entropy", "running without the model", "running in rows", "dataset", "sigmoid"],
)
def test_what_an_expression_cannot_do_is_refused(
    run_file: Path, settings: tuple[str, ...], facts: tuple[str, ...], says: Says
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, run_file, [f"slm.{setting}" for setting in settings])
    says(refused, *facts)


@pytest.mark.parametrize(
    ("criterion", "needs"),
    [
        ("loss - ref_loss", (True, False, True, False)),
        ("ref_loss - ref_entropy", (True, True, False, False)),
        ("entropy - weight", (False, False, True, True)),
    ],
)
def test_a_run_needs_what_its_expression_names(
    run_file: Path, criterion: str, needs: tuple[bool, bool, bool, bool]
) -> None:
    slm = load(RunConfig, run_file, [f"slm.criterion={criterion}"]).value.slm
    assert (slm.needs_ref_loss, slm.needs_ref_entropy, slm.sorts_by_model, slm.sorts_by_entropy) == needs
