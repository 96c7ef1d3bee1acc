"""The task files in configs/eval read the published formats, and say the right answers."""

from pathlib import Path

import pytest

from megaslm.tasks.grading import extracted, grading
from megaslm.tasks.items import items_of
from megaslm.tasks.task_files import TASKS, load_suite, load_tasks
from tests.evaluation_data import EXPECTED, write_evaluation_data
from tests.launched import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation_data(tmp_path_factory.mktemp("data"))


def test_every_shipped_task_has_a_look_alike() -> None:
    shipped = {path.stem for path in (ROOT / TASKS).glob("*.yaml")} - {"word-problems"}
    assert {name for name in shipped if not name.startswith("tora-")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_file_is_read(name: str, data: Path) -> None:
    items = items_of(load_tasks([name])[name], data)
    assert [(item.question, item.answer) for item in items][:2] == EXPECTED[name]
    assert [item.number for item in items] == list(range(len(items)))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_examples_of_a_prompt_are_graded_as_right_by_their_own_task(name: str, data: Path) -> None:
    """An example whose answer the grader cannot read would teach the model to answer in vain."""
    task = load_tasks([name])[name]
    prompt = items_of(task, data)[0].prompt
    with grading("letter") as letters:
        for example in task.examples:
            assert f"{example.question}" in prompt
            found = extracted(example.solution, task.grader)
            assert found
            if task.grader == "letter":
                assert letters.verdict(found, found) == "right"
    assert prompt.endswith(("Answer:", "Solution:\n"))


def test_the_suite_of_general_tasks_is_of_lm_eval_and_runs_no_programs() -> None:
    suite = load_suite(ROOT / "configs" / "eval" / "general.yaml")
    assert suite.names == tuple(suite.lm_eval)
    assert len(suite.names) == 13
    assert not {"humaneval", "mbpp"} & set(suite.names)


def test_the_suite_of_the_paper_names_shipped_tasks() -> None:
    suite = load_suite(ROOT / "configs" / "eval" / "rho-math.yaml")
    assert set(load_tasks(suite.tasks)) == set(suite.tasks)
    for row in suite.published:
        assert set(row.accuracy) == set(suite.tasks)
