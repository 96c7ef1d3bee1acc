"""The answer at the end of an output, and its normal form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.grading.answers import Rules, final_answer, normalised, program_output

WORDS = [
    "\\frac",
    "\\boxed{",
    "boxed",
    "he answer is",
    "```output\n",
    "```",
    "\\text{",
    "\\sqrt",
    "\\begin{array}{c}",
    "inf",
]
MORE_WORDS = ["hundred", "million", "twenty", "sq . m", "\\left", "km", "é", "𝑥", *"0123456789.,-+/=%$^_{}[]()\\ \n"]
PIECES = st.lists(st.sampled_from([*WORDS, *MORE_WORDS]), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is $\\boxed{18}$ dollars.", "18"),
        ("\\boxed{1} or \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("It is $\\boxed 7$ now", "7"),
        ("\\boxed{\\text{never closed", "\\text{never closed"),
        ("The answer is: 5.", " 5"),
        ("The answer is 3/4/", "3/4"),
        ("first 1,234 then -0.5 and so on", "-0.5"),
        ("no number", ""),
        ("boxed", ""),
    ],
)
def test_the_final_answer(text: str, answer: str) -> None:
    assert final_answer(text, "rho") == final_answer(text, "tora") == answer


def test_only_tora_looks_into_the_output_of_a_program() -> None:
    text = "```python\nprint(6)\n```\n```output\n6\n```\nSo there are 7."
    assert program_output(text) == "6"
    assert final_answer(text, "tora") == "6"
    assert final_answer(text, "rho") == "7"


def test_only_rho_joins_the_lines_of_an_answer() -> None:
    text = "\\boxed{\\begin{pmatrix}1\\\\\n  2\\end{pmatrix}}"
    assert final_answer(text, "rho") == "\\begin{pmatrix}1\\\\2\\end{pmatrix}"
    assert final_answer(text, "tora") == "\\begin{pmatrix}1\\\\"


@pytest.mark.parametrize(
    ("answer", "rho", "tora"),
    [
        ("\\dfrac12", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("3 / 4", "\\frac{3}{4}", "\\frac{3}{4}"),
        ("3/4", "\\frac{3}{4}", "\\frac{3}{4}"),
        ("50\\%", "50", "50"),
        ("12 km", "12", "12km"),
        ("sq m", "sqm", "sqm"),
        ("twenty-one", "21", "twenty-one"),
        ("three hundred and five", "305", "threehundredfive"),
        ("two million", "2000000", "twomillion"),
        ("5.00", "5", "5"),
        ("5.", "5", "5"),
        ("x=\\sqrt3", "\\sqrt{3}", "\\sqrt{3}"),
        ("\\text{C}", "C", "{C}"),
        (".5", "0.5", "0.5"),
        ("", "", ""),
    ],
)
def test_normal_forms(answer: str, rho: str, tora: str) -> None:
    assert (normalised(answer, "rho"), normalised(answer, "tora")) == (rho, tora)


@given(PIECES, st.sampled_from(["rho", "tora"]))
def test_any_text_has_a_normal_form_on_one_line(text: str, rules: Rules) -> None:
    assert "\n" not in normalised(final_answer(text, rules), rules)
