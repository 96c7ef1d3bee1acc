"""Answers to items: one completion each, or turns of completions and programs (ToRA, arXiv 2309.17452, section 2.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megaslm.config.task import Task
from megaslm.errors import PromptTooLong
from megaslm.generation.sampling import Completion, Generator, Prompt, Sampling
from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.sandbox import Sandbox
from megaslm.tasks.items import Item

_FENCE = "```"
_LONGEST_OUTPUT = 400
_MOST_SAMPLES = 1 << 20


@dataclass
class Answering:
    """One sample of the answer to one item, while it grows."""

    item: Item
    sample: int
    text: str = ""
    """Completions and, between them, the outputs of programs."""
    tokens: int | None = 0
    """Generated tokens; None where a server does not say."""
    ended: str = ""
    programs: list[ProgramResult] = field(default_factory=list)

    @property
    def prompt(self) -> Prompt:
        """What is to be continued next. A turn after a program has a key of its own."""
        number = self.item.number * _MOST_SAMPLES + self.sample
        return Prompt(self.item.prompt + self.text, number * (1 + _MOST_SAMPLES) + len(self.programs))

    def add(self, completion: Completion) -> None:
        """Adds what was generated."""
        self.text += completion.text
        self.ended = completion.ended
        self.tokens = None if self.tokens is None or completion.tokens is None else self.tokens + completion.tokens

    def program(self) -> str | None:
        """The program that the text now ends with; None where it has given its answer."""
        text = self.text.rstrip()
        if not text.endswith(_FENCE):
            return None
        _, fence, program = text.removesuffix(_FENCE).rpartition("```python\n")
        # The answer, or the output of an earlier program, stands after the last program that is done.
        return program if fence and _FENCE not in program and "boxed" not in self._since_last_output() else None

    def _since_last_output(self) -> str:
        return self.text.rpartition("```output\n")[2]

    def run(self, result: ProgramResult) -> None:
        """Adds the output of the program that the text ends with."""
        self.programs.append(result)
        self.text = f"{self.text.rstrip()}\n```output\n{shown(result)}\n```\n"


def shown(result: ProgramResult) -> str:
    """A program's output as the model reads it: 400 characters at most, cut in the middle; of an error, its last line.

    A program that prints nothing is "Done", as in the harness that Rho-1 used.
    """
    output = result.error if result.error is not None else (result.stdout.strip() or "Done")
    if len(output) <= _LONGEST_OUTPUT:
        return output
    return f"{output[: _LONGEST_OUTPUT // 2]}...{output[-_LONGEST_OUTPUT // 2 :]}"


def answer(
    task: Task,
    items: Sequence[tuple[Item, int]],
    generator: Generator,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    sandbox: Sandbox | None = None,
) -> list[Answering]:
    """The answers to items, each with the number of its sample.

    With `task.interpreter`, programs of all items run side by side in `sandbox`, and each answer continues after the
    output of its program, until it holds no further program, has run `task.most_programs`, or has grown too long for
    the model's context.

    Raises:
        PromptTooLong: an item's prompt and `task.max_new_tokens` exceed the model's context.
    """
    answers = [Answering(item, sample) for item, sample in items]
    sampling = Sampling(task.max_new_tokens, task.stop, temperature, top_p, seed)
    growing = answers
    for turn in range(1 + (task.most_programs if task.interpreter else 0)):
        growing = _continued(growing, generator, sampling, is_first=turn == 0)
        if sandbox is None or turn == task.most_programs:
            break
        with_programs = [(each, program) for each in growing if (program := each.program()) is not None]
        results = sandbox.run([program for _, program in with_programs])
        for (each, _), result in zip(with_programs, results, strict=True):
            each.run(result)
        growing = [each for each, _ in with_programs]
        if not growing:
            break
    return answers


def _continued(
    growing: list[Answering], generator: Generator, sampling: Sampling, *, is_first: bool
) -> list[Answering]:
    """Adds a completion to each answer, and gives those that have one.

    After the first turn an answer that no longer fits into the context ends there, as one that reached its most tokens.
    """
    try:
        completions = generator.generate([each.prompt for each in growing], sampling)
    except PromptTooLong as error:
        if is_first:
            raise
        too_long = set(error.places)
        for place in too_long:
            growing[place].ended = "length"
        fitting = [each for place, each in enumerate(growing) if place not in too_long]
        return _continued(fitting, generator, sampling, is_first=False) if fitting else []
    for each, completion in zip(growing, completions, strict=True):
        each.add(completion)
    return growing


def failed(answering: Answering) -> int:
    """How many of its programs ended otherwise than done; those that ran out of time are among them."""
    return sum(result.ending != Ending.DONE for result in answering.programs)


def timed_out(answering: Answering) -> int:
    """How many of its programs ran out of time."""
    return sum(result.ending == Ending.TIMED_OUT for result in answering.programs)
