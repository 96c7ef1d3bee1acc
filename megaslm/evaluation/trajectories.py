"""Right answers that ran programs, written as conversations to fine-tune on (ToRA, arXiv 2309.17452, section 2.3)."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from itertools import groupby
from pathlib import Path

from megaslm.evaluation.overlap import ngrams
from megaslm.evaluation.records import Answered, Description, Record, Results
from megaslm.files import write_file
from megaslm.tasks.items import Item

MESSAGES = "messages.jsonl"
SUMMARY = "summary.json"
_FENCE, _PYTHON, _OUTPUT = "```", "python\n", "output\n"


class SampledTask(Record):
    """What was kept of one task's answers, and why the others were not. An answer is counted once, in this order."""

    items: int
    answers: int
    avoided_items: int
    """Items that share 13 words in a row with a task to be avoided. None of their answers is kept."""
    avoided: int
    wrong: int
    """Answers that are wrong or ungradable."""
    truncated: int
    without_program: int
    failing: int
    """Answers of which a program ended in an error, was killed or timed out."""
    malformed: int = 0
    """Answers that are not words, a program, its output, and so on, up to words with a `\\boxed{}`."""
    repeated: int
    """Answers whose programs an earlier answer to the item has too, apart from spaces and comments."""
    surplus: int
    """Answers beyond the most of an item."""
    kept: int
    items_kept: int
    """Items of which at least one answer is kept."""


class Sampled(Record):
    """The content of summary.json."""

    description: Description
    most_per_item: int
    tasks: dict[str, SampledTask]


def keep_trajectories(
    folder: Path, output: Path, results: Results, *, most_per_item: int, avoided: Mapping[str, Set[int]]
) -> Sampled:
    """Writes messages.jsonl and summary.json into `output`, from the answers of a finished evaluation.

    A trajectory is kept if its answer is right, boxed, and ended by itself, and its programs, at least one, ran without
    error.
    Of an item the first `most_per_item` with different programs are kept: samples are independent draws, so the first
    ones are a random choice.

    Args:
        folder: the evaluation's output.
        output: an existing folder.
        results: those of the evaluation.
        most_per_item: trajectories of one item.
        avoided: for each task the numbers of the items that are left out.
    """
    lines: list[str] = []
    tasks: dict[str, SampledTask] = {}
    for name, result in results.tasks.items():
        counts: Counter[str] = Counter()
        items_kept = 0
        for item, answers in groupby(_answers(folder / f"{name}.jsonl"), key=lambda answer: answer.item):
            kept = list(_kept(answers, most_per_item, counts, is_avoided=item in avoided[name]))
            lines += [_conversation(name, answer) for answer in kept]
            items_kept += bool(kept)
        tasks[name] = SampledTask(
            items=result.items,
            answers=counts.total(),
            avoided_items=len(avoided[name]),
            items_kept=items_kept,
            **{reason: counts[reason] for reason in _REASONS},
        )
    sampled = Sampled(description=results.description, most_per_item=most_per_item, tasks=tasks)
    write_file(output / MESSAGES, "".join(f"{line}\n" for line in lines))
    write_file(output / SUMMARY, sampled.model_dump_json(indent=1) + "\n")
    return sampled


def sharing_words(items: Mapping[str, list[Item]], others: Mapping[str, list[Item]]) -> dict[str, frozenset[int]]:
    """For each task of `items` the numbers of those that share 13 words in a row with an item of `others`."""
    to_avoid = {ngram for each in others.values() for item in each for ngram in _words(item)}
    return {
        name: frozenset(item.number for item in each if not to_avoid.isdisjoint(_words(item)))
        for name, each in items.items()
    }


_REASONS = ("avoided", "wrong", "truncated", "without_program", "failing", "malformed", "repeated", "surplus", "kept")


def _answers(path: Path) -> Iterator[Answered]:
    """The answers of a task, sorted by item and sample."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield Answered.model_validate_json(line)


def _kept(answers: Iterator[Answered], most: int, counts: Counter[str], *, is_avoided: bool) -> Iterator[Answered]:
    """The answers to one item that are kept. Counts what becomes of each."""
    seen: set[tuple[str, ...]] = set()
    for answer in answers:
        programs = _programs(answer.output)
        if is_avoided:
            reason = "avoided"
        elif answer.verdict != "right":
            reason = "wrong"
        elif answer.ended == "length":
            reason = "truncated"
        elif not answer.programs:
            reason = "without_program"
        elif answer.programs_failed:
            reason = "failing"
        elif programs is None or len(programs) != answer.programs:
            reason = "malformed"
        elif programs in seen:
            reason = "repeated"
        else:
            reason = "kept" if len(seen) < most else "surplus"
            seen.add(programs)
        counts[reason] += 1
        if reason == "kept":
            yield answer


def _programs(text: str) -> tuple[str, ...] | None:
    """The programs of a trajectory without spaces in lines, empty lines and lines of comment; None for another text.

    Each program must be followed by its output, and the last output by words with a boxed answer. Another fence is
    refused, be it in words, in a program or in what a program prints: `prepare` could not tell the model's words from
    the program's output.
    """
    *blocks, last = text.split(_FENCE)
    programs, between, outputs = blocks[1::4], blocks[2::4], blocks[3::4]
    is_trajectory = (
        len(blocks) % 4 == 0
        and "\\boxed{" in last
        and all(program.startswith(_PYTHON) for program in programs)
        and not any(map(str.strip, between))
        and all(output.startswith(_OUTPUT) for output in outputs)
    )
    return tuple(map(_bare, programs)) if is_trajectory else None


def _bare(program: str) -> str:
    lines = program.removeprefix(_PYTHON).split("\n")
    code = ((line, line.lstrip()) for line in lines if line.strip() and not line.lstrip().startswith("#"))
    # Indentation stays: it decides what a program does.
    return "\n".join(line.removesuffix(bare) + "".join(bare.split()) for line, bare in code)


def _conversation(task: str, answer: Answered) -> str:
    """A line of JSON. `problem` is the same for all trajectories of an item: they belong in one split of a dataset."""
    return json.dumps(
        {
            "messages": [
                {"role": "user", "content": answer.question},
                {"role": "assistant", "content": answer.output.rstrip()},
            ],
            "problem": f"{task}/{answer.item}",
            "sample": answer.sample,
        },
        ensure_ascii=False,
    )


def _words(item: Item) -> Iterator[str]:
    return ngrams(f"{item.question} {item.solution}")
