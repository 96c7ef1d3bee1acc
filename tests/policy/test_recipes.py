"""What the paper gives, what we chose, and that each file says which is which."""

from decimal import Decimal
from pathlib import Path

import pytest

from tests.policy.paper import (
    CONFIGS,
    OF_THE_PAPER,
    PAGE,
    PAPER,
    RESULTS_DEPEND_ON,
    SELECTION_DEPENDS_ON,
    cell,
    loaded,
    mark_at,
    value_of,
    with_table,
)

FILES = sorted(str(path.relative_to(CONFIGS)) for folder in OF_THE_PAPER for path in (CONFIGS / folder).glob("*.yaml"))


def test_the_table_is_that_of_the_files() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings_are_the_papers(name: str) -> None:
    found = loaded(name)
    for key, value in PAPER[name].items():
        assert value_of(found.value, key) == (Decimal(str(value)) if key == "slm.keep_ratio" else value), key
        assert cell(found, key).mark == "paper", key


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_moves_a_result_is_silent(name: str) -> None:
    found = loaded(name)
    selects = found.value.train.objective == "slm"
    keys = [*RESULTS_DEPEND_ON, *(SELECTION_DEPENDS_ON if selects else ())]
    assert [key for key in keys if not mark_at(found.provenance[key])] == []


@pytest.mark.parametrize("name", FILES)
def test_each_line_of_the_objective_says_whose_it_is(name: str) -> None:
    own = {
        key: origin
        for key, origin in loaded(name).provenance.items()
        if origin.startswith(f"{CONFIGS / name}:")
        and key.startswith(("model.", "train.", "slm."))
        and key not in ("slm.reference", "model.hub.repo", "model.hub.revision")
        and value_of(loaded(name).value, key) is not None
    }
    assert {key: origin for key, origin in own.items() if not mark_at(origin)} == {}


def test_a_line_without_a_mark_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("lr: 1  # ours: why\nb: 2  # ours, and so are the next\nc: 3  # papers\nd: 4\ne: 5  # paper\n")
    assert [mark_at(f"{file}:{line}") for line in range(1, 6)] == ["ours", "ours", "", "", "paper"]
    assert mark_at("default") == ""
