"""Which sampled answers are kept to fine-tune on."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.evaluation.records import Answered, Results, TaskResult
from megaslm.evaluation.trajectories import MESSAGES, SUMMARY, Sampled, keep_trajectories, sharing_words
from megaslm.tasks.items import Item
from tests.evaluations import description


def trajectory(program: str, rationale: str = "Add them.") -> str:
    return f"{rationale}\n```python\n{program}\n```\n```output\n5\n```\nIt is $\\boxed{{5}}$.\n"


def answered(sample: int, **changes: Any) -> Answered:
    fields = {
        "item": 0, "sample": sample, "question": "What is 2 + 3?", "reference": "5", "answer": "5",
        "output": trajectory("print(2 + 3)"), "verdict": "right", "tokens": 9, "ended": "eos",
        "programs": 1, "programs_failed": 0, "programs_timed_out": 0, **changes,
    }  # fmt: skip
    return Answered(**fields)


def keep(folder: Path, *answers: Answered, most: int = 4, avoided: frozenset[int] = frozenset()) -> Sampled:
    (folder / "sums.jsonl").write_text("".join(f"{answer.model_dump_json()}\n" for answer in answers))
    result = TaskResult(
        items=len({answer.item for answer in answers}), samples=1, grader="tora", task_sha256="", data_sha256=""
    )
    results = Results(description=description(), tasks={"sums": result}, seconds=0.0)
    return keep_trajectories(folder, folder, results, most_per_item=most, avoided={"sums": avoided})


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MESSAGES).read_text(encoding="utf-8").split("\n")[:-1]]


def test_each_answer_is_kept_or_counted_under_one_reason(tmp_path: Path) -> None:
    sampled = keep(
        tmp_path,
        answered(0, verdict="wrong"),
        answered(1, verdict="ungradable"),
        answered(2, ended="length"),
        answered(3, programs=0, output="It is \\boxed{5}."),
        answered(4, programs_failed=1),
        answered(5),
        answered(6, output=trajectory("# the sum\nprint(2+3)\n", rationale="Sum up.")),
        answered(7, output=trajectory("print(3 + 2)")),
        answered(8, output=trajectory("print(5)")),
        most=2,
    ).tasks["sums"]
    assert (sampled.wrong, sampled.truncated, sampled.without_program, sampled.failing) == (2, 1, 1, 1)
    assert (sampled.repeated, sampled.surplus, sampled.kept, sampled.items_kept) == (1, 1, 2, 1)
    assert [each["sample"] for each in kept(tmp_path)] == [5, 7]
    assert Sampled.model_validate_json((tmp_path / SUMMARY).read_text()).tasks["sums"] == sampled


FENCE = "```"
MALFORMED = {
    "a program prints a fence": trajectory("print('x')").replace("\n5\n", f"\n{FENCE}\n5\n"),
    "a program holds a fence": trajectory(f"s = '{FENCE}'"),
    "a program was not run": f"{trajectory('print(5)')}{FENCE}python\nprint(6)\n{FENCE}",
    "an output of the model's own": trajectory("print(5)", rationale=trajectory("print(6)")),
    "the answer is not boxed": trajectory("print(5)").replace("$\\boxed{5}$", "5"),
    "the answer is boxed before its program": trajectory("print(5)", "\\boxed{5}").replace("$\\boxed{5}$", "5"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_text_whose_own_words_are_not_clear_is_left_out(case: str, tmp_path: Path) -> None:
    sampled = keep(tmp_path, answered(0, output=MALFORMED[case]), answered(1)).tasks["sums"]
    assert (sampled.malformed, sampled.kept) == (1, 1)


def test_programs_that_differ_in_indentation_alone_are_others(tmp_path: Path) -> None:
    once, each_time = "for _ in 1, 2:\n    x = 5\nprint(x)", "for _ in 1, 2:\n    x = 5\n    print(x)"
    answers = (answered(0, output=trajectory(once)), answered(1, output=trajectory(each_time)))
    assert keep(tmp_path, *answers).tasks["sums"].kept == 2


def test_a_conversation_is_question_and_answer_and_names_its_problem(tmp_path: Path) -> None:
    keep(tmp_path, answered(0, question="Wie viel\u2028ist 2 + 3?"), answered(0, item=7))
    first, second = kept(tmp_path)
    assert first["messages"] == [
        {"role": "user", "content": "Wie viel\u2028ist 2 + 3?"},
        {"role": "assistant", "content": trajectory("print(2 + 3)").rstrip()},
    ]
    assert (first["problem"], second["problem"]) == ("sums/0", "sums/7")


def test_items_that_share_13_words_with_a_task_to_be_avoided_are_left_out(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    mine = [Item(0, f"Say {long}!", "5", "", ""), Item(1, "one two three", "5", "", "")]
    avoided = sharing_words({"sums": mine}, {"other": [Item(0, f"And {long.upper()}?", "1", "", "")]})
    assert avoided == {"sums": frozenset({0})}
    sampled = keep(tmp_path, answered(0), answered(0, item=1), avoided=avoided["sums"]).tasks["sums"]
    assert (sampled.avoided_items, sampled.avoided, sampled.kept) == (1, 1, 1)
    assert [each["problem"] for each in kept(tmp_path)] == ["sums/1"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from("abc")), max_size=30), st.integers(1, 3))
def test_no_more_than_asked_of_an_item_and_none_twice(
    tmp_path_factory: Any, drawn: list[tuple[int, bool, str]], most: int
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    answers = [
        answered(number, item=item, verdict="right" if right else "wrong", output=trajectory(f"print({name!r})"))
        for number, (item, right, name) in enumerate(sorted(drawn))
    ]
    sampled = keep(folder, *answers, most=most).tasks["sums"]
    lines = kept(folder)
    for item in range(4):
        mine = [line["messages"][1]["content"] for line in lines if line["problem"] == f"sums/{item}"]
        distinct = {answer.output for answer in answers if answer.item == item and answer.verdict == "right"}
        assert len(mine) == len(set(mine)) == min(most, len({each.rstrip() for each in distinct}))
    assert sampled.answers == len(answers)
