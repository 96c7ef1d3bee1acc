"""Answers whose programs are run: what the model reads after each program, and where an answer ends."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from megaslm.config.task import Task
from megaslm.errors import PromptTooLong, SandboxError
from megaslm.evaluation.answering import Answering, answer, failed, shown, timed_out
from megaslm.generation.sampling import Completion, Prompt, Sampling
from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.sandbox import Sandbox
from megaslm.tasks.items import Item

SETTINGS: dict[str, Any] = {"files": ["a"], "format": "jsonl", "question": "{q}", "answer": "{a}"}
TASK = Task.model_validate({**SETTINGS, "interpreter": True, "stop": ["```output"], "grader": "tora"})


class Written:
    """A model that says what was written for it, turn by turn; it keeps the prompts."""

    def __init__(self, *turns: str) -> None:
        self.turns = iter(turns)
        self.prompts: list[str] = []

    context_characters = 1_000_000

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, **_: Any) -> list[Completion]:
        assert sampling.stop == TASK.stop
        too_long = [place for place, each in enumerate(prompts) if len(str(each.content)) > self.context_characters]
        if too_long:
            raise PromptTooLong("too long", too_long, longest_tokens=0, context_tokens=0)
        self.prompts += [str(prompt.content) for prompt in prompts]
        return [Completion(next(self.turns), 3, "stop") for _ in prompts]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        with Sandbox(workers=2, seconds=5) as started:
            yield started
    except SandboxError as error:
        pytest.skip(str(error))


def answered(sandbox: Sandbox, *turns: str) -> tuple[Answering, list[str]]:
    model = Written(*turns)
    (found,) = answer(TASK, [(Item(0, "q", "5", "P:"), 0)], model, sandbox=sandbox)
    return found, model.prompts


def program(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```\n"])


def test_the_model_reads_the_output_of_its_program(sandbox: Sandbox) -> None:
    found, prompts = answered(sandbox, "I compute.\n" + program("print(2 + 3)"), "It is $\\boxed{5}$.")
    assert prompts == ["P:", "P:I compute.\n```python\nprint(2 + 3)\n```\n```output\n5\n```\n"]
    assert found.text == f"{prompts[1][2:]}It is $\\boxed{{5}}$."
    assert (len(found.programs), found.tokens, found.ended) == (1, 6, "stop")


def test_an_error_is_its_last_line_and_a_later_program_may_mend_it(sandbox: Sandbox) -> None:
    found, prompts = answered(sandbox, program("print(x)"), program("x = 1", "print(x)"), "\\boxed{1}")
    assert re.search(r"```output\nNameError: .*'x'.*\n```\n", prompts[1])
    assert prompts[2].endswith("```output\n1\n```\n")
    assert [result.ending for result in found.programs] == [Ending.ERROR, Ending.DONE]
    assert (failed(found), timed_out(found)) == (1, 0)


def test_an_answer_runs_four_programs_at_most(sandbox: Sandbox) -> None:
    found, prompts = answered(sandbox, *[program(f"print({turn})") for turn in range(5)])
    assert len(found.programs) == 4
    assert len(prompts) == 5


@pytest.mark.parametrize("text", ["\\boxed{5}", "no program", "```\n", program("print(1)") + "so \\boxed{1}\n```", ""])
def test_an_output_without_a_new_program_is_the_answer(text: str, sandbox: Sandbox) -> None:
    found, _ = answered(sandbox, text)
    assert (found.text, found.programs) == (text, [])


def test_programs_of_all_items_run_side_by_side_and_stay_with_theirs(sandbox: Sandbox) -> None:
    items = [(Item(number, "q", "5", f"P{number}:"), 0) for number in range(3)]
    turns = [program("print('a')"), "none", program("print('c')"), "\\boxed{a}", "\\boxed{c}"]
    found = answer(TASK, items, Written(*turns), sandbox=sandbox)
    assert [len(each.programs) for each in found] == [1, 0, 1]
    assert "a\n```\n\\boxed{a}" in found[0].text
    assert "c\n```\n\\boxed{c}" in found[2].text


def test_a_program_that_does_not_end_costs_its_time_and_the_next_one_is_right(sandbox: Sandbox) -> None:
    found, prompts = answered(sandbox, program("while True: pass"), program("print(7)"), "\\boxed{7}")
    assert (failed(found), timed_out(found)) == (1, 1)
    assert prompts[2].endswith("```output\n7\n```\n")


def test_an_answer_that_outgrows_the_context_ends_and_the_others_go_on(sandbox: Sandbox) -> None:
    items = [(Item(number, "q", "5", f"P{number}:"), 0) for number in range(3)]
    model = Written(program("print(1)"), program("print('b' * 99)"), program("print(3)"), "\\boxed{1}", "\\boxed{3}")
    model.context_characters = 80
    found = answer(TASK, items, model, sandbox=sandbox)
    assert [each.ended for each in found] == ["stop", "length", "stop"]
    assert found[0].text.endswith("\\boxed{1}")
    assert found[1].text.endswith("b\n```\n")
    assert found[2].text.endswith("\\boxed{3}")
    assert [each.tokens for each in found] == [6, 3, 6]


def test_a_prompt_that_is_too_long_from_the_start_is_refused(sandbox: Sandbox) -> None:
    model = Written("\\boxed{1}")
    model.context_characters = 1
    with pytest.raises(PromptTooLong):
        answer(TASK, [(Item(0, "q", "5", "P:"), 0)], model, sandbox=sandbox)


def test_long_outputs_are_cut_in_the_middle() -> None:
    result = ProgramResult(Ending.DONE, "a" * 500 + "b" * 500, None)
    assert shown(result) == "a" * 200 + "..." + "b" * 200
    assert shown(ProgramResult(Ending.DONE, " \n", None)) == "Done"


def test_each_turn_is_sampled_with_a_key_of_its_own() -> None:
    keys = set()
    for item in range(3):
        for sample in range(3):
            answering = Answering(Item(item, "", "", ""), sample)
            for _ in range(3):
                keys.add(answering.prompt.key)
                answering.programs.append(ProgramResult(Ending.DONE, "", None))
    assert len(keys) == 27
