"""The process that grades: it is killed where an answer takes too long, and real outputs get their published grades."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from megaslm.grading.answers import normalised
from megaslm.grading.judge import GRADERS, Grader, Judge, answer_of

SHARED_DATA = os.environ.get("MEGASLM_SHARED_DATA")
TAKES_LONG = "x" * 50_000


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_an_answer_that_takes_too_long_is_ungradable_and_the_next_one_is_right() -> None:
    before = children()
    with Judge("tora", patience_seconds=3) as judge:
        assert judge.verdict("5", "5") == "right"
        assert judge.verdict(TAKES_LONG, "5") == "ungradable"
        assert judge.verdict("5", "5") == "right"
    assert children() == before


def test_ctrl_c_on_the_terminal_leaves_it_at_work() -> None:
    """The terminal tells it too, and the answer at which it is would be ungradable for ever."""
    before = children()
    with Judge("strict") as judge:
        assert judge.verdict("5", "5") == "right"
        (process,) = children() - before
        os.kill(process, signal.SIGINT)
        assert judge.verdict("5", "5") == "right"
        assert children() - before == {process}


@pytest.mark.parametrize("grader", GRADERS)
def test_answers_are_not_run_as_programs(grader: Grader) -> None:
    with Judge(grader) as judge:
        assert judge.verdict("5", "5") == "right"
        process = children()
        for answer in ("exit()", "__import__('os')._exit(0)", "().__class__", "1\n2", "\x00"):
            assert judge.verdict(answer, "5") != "right"
        assert children() == process


@pytest.mark.slow
@pytest.mark.skipif(SHARED_DATA is None, reason="MEGASLM_SHARED_DATA is not set")
@pytest.mark.parametrize(
    ("grader", "from_recorded", "from_text"), [("tora", 1064, 1064), ("rho", 1067, 1068), ("strict", 1062, 1063)]
)
def test_outputs_of_tora_get_their_published_grade(grader: Grader, from_recorded: int, from_text: int) -> None:
    """1,064 of 1,319 are the published 80.7%. In one text the last number is the right one by chance."""
    assert SHARED_DATA is not None
    lines = (Path(SHARED_DATA) / "trajectories" / "tora_34b_gsm8k.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]

    def graded(answers: list[str]) -> int:
        return [judge.verdict(answer, row["gt"]) for answer, row in zip(answers, rows, strict=True)].count("right")

    with Judge(grader) as judge:
        recorded = [row["pred"][0] for row in rows]
        assert (
            graded(recorded if grader == "strict" else [normalised(text, grader) for text in recorded]) == from_recorded
        )
        assert graded([answer_of(row["code"][0], grader) for row in rows]) == from_text
