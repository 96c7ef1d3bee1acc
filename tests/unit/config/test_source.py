"""YAML text to values: what cannot be one is named by its line."""

from itertools import pairwise

import pytest

from megaslm.config.source import parse_source
from megaslm.errors import ConfigError


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp soon", "a: !!bool maybe", "a: !!int ''", "a: !!float one", "a: !!binary aGVsbG8=",
        "a: !!timestamp 2001-01-01", f"a: {'7' * 5000}", 'a: "\\ud800"', '"\\ud800": a', "a: !!python/name:os.system x",
    ],
)  # fmt: skip
def test_what_yaml_cannot_make_a_value_of_is_named_by_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml:2: ") as refused:
        parse_source(f"b: 1\n{text}\n", "run.yaml")
    assert len(str(refused.value)) < 200


def test_what_expands_without_end_is_refused() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{former}'] * 9)}]\n" for former, name in pairwise("abcdefgh")
    )
    for text in (bomb, "a: " + "[" * 1000 + "]" * 1000, "a: &a [*a]"):
        with pytest.raises(ConfigError, match=r"^run\.yaml"):
            parse_source(text, "run.yaml")
