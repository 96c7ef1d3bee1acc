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
    TEXTS,
    cell,
    chosen,
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


@pytest.mark.parametrize("recipe", TEXTS)
def test_the_papers_texts_are_the_papers_and_nothing_of_the_others_is_silent(recipe: str) -> None:
    cells = chosen(recipe)
    named = [its for key, its in cells.items() if key.endswith(".domain")]
    assert tuple(its.value for its in named if its.mark == "paper") == TEXTS[recipe]
    assert [key for key, its in cells.items() if not its.mark] == []


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        # The paper, section 3.1: SlimPajama, StarCoderData and OpenWebMath at 6 : 3 : 1.
        ("rho-general-1b/clm.yaml", {"web": 6, "code": 3, "math": 1}),
        ("rho-general-1b/slm.yaml", {"web": 6, "code": 3, "math": 1}),
        ("rho-math-1b/clm-with-curated.yaml", {"corpus": 97, "curated": 3}),
    ],
)
def test_streams_are_read_in_these_shares(name: str, weights: dict[str, int]) -> None:
    streams = loaded(name).value.data.streams
    assert {stream: section.weight for stream, section in streams.items()} == weights


@pytest.mark.parametrize("folder", ["rho-general-1b", "rho-math-1b", "rho-math-7b"])
def test_a_reference_needs_its_own_dataset_alone(folder: str) -> None:
    run = loaded(f"{folder}/reference.yaml").value
    assert [held_out.dataset for held_out in run.validation.sets.values()] == [run.data.train]


@pytest.mark.parametrize("name", FILES)
def test_a_run_over_the_corpus_keeps_checkpoints_for_an_analysis(name: str) -> None:
    run = loaded(name).value
    if run.train.total_tokens is not None and run.train.total_tokens >= 10_000_000_000:
        assert run.checkpoint.keep_every_tokens == (4 if run.train.total_tokens >= 5 * 10**10 else 1) * 10**9


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
