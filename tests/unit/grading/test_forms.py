"""202 real and hostile forms of answers, and what each grader says of them, read one by one.

A reference is what the data set gives. Where `strict` and the rules of published results differ, the rules are wrong in
most rows: they take 1/3 for 0.3 and [0, 1) for [0, 1], and know few units.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.grading.answers import normalised
from megaslm.grading.equality import equal
from megaslm.grading.strict import strictly_equal

FORMS = list(csv.DictReader(Path(__file__).with_name("forms.tsv").open(), delimiter="\t", quoting=csv.QUOTE_NONE))


def by_rules(rules: str) -> Callable[[str, str], bool]:
    return lambda answer, reference: equal(normalised(answer, rules), normalised(reference, rules), rules)


@pytest.mark.parametrize(
    ("grader", "equality"), [("strict", strictly_equal), ("rho", by_rules("rho")), ("tora", by_rules("tora"))]
)
def test_graders_agree_with_the_table(grader: str, equality: Callable[[str, str], bool]) -> None:
    verdicts = {True: "right", False: "wrong"}
    found = [
        (form["answer"], form["reference"], verdicts[equality(form["answer"], form["reference"])]) for form in FORMS
    ]
    assert found == [(form["answer"], form["reference"], form[grader]) for form in FORMS]


def test_the_table_is_large() -> None:
    assert len({(form["answer"], form["reference"]) for form in FORMS}) == len(FORMS) >= 150
