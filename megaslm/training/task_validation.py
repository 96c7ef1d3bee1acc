"""Accuracies on tasks during training: the live model answers, with greedy choices, and its answers are graded."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megaslm.config.schema import ValidationSection, ValidationTask
from megaslm.config.task import Task
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, all_reduce_sum, on_first_rank
from megaslm.engine.heartbeat import heartbeat
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import ConfigError
from megaslm.generation.local import LocalGenerator
from megaslm.generation.sampling import Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.observe.records import TaskRecord
from megaslm.tasks.grading import extracted, grading
from megaslm.tasks.items import Item, items_of
from megaslm.tasks.task_files import load_tasks


@dataclass(frozen=True)
class _Asked:
    """A task, all of its items, and those that this rank answers."""

    name: str
    task: Task
    items: tuple[Item, ...]
    mine: tuple[Item, ...]


class TaskValidation:
    """The tasks of a run, read once. Every method is called on all ranks."""

    def __init__(self, section: ValidationSection, world: World, tokenizer: Path, *, context_tokens: int) -> None:
        """`tokenizer`: the folder of the dataset's. `context_tokens`: most tokens that the model was built for.

        Raises:
            ConfigError: a task file is wrong, or its prompts do not fit into the model's context.
            DataError: the data of a task is missing or of another format.
        """
        self._world, self._context_tokens, self._batch_rows = world, context_tokens, section.batch_rows
        self._tokens = TextTokens.of_folder(tokenizer) if section.tasks else None
        self._asked = [self._read(name, chosen) for name, chosen in section.tasks.items()]

    def _read(self, name: str, chosen: ValidationTask) -> _Asked:
        (task,) = load_tasks([chosen.task]).values()
        task = task.model_copy(update={"max_new_tokens": chosen.max_new_tokens})
        if task.interpreter:
            raise ConfigError(
                f"validation.tasks.{name}: the task {chosen.task} runs programs, which a training run does not; "
                "measure it with `megaslm evaluate` on an exported model"
            )
        items = tuple(items_of(task, Path(chosen.data), limit=chosen.max_items))
        asked = _Asked(name, task, items, items[self._world.rank :: self._world.size])
        on_first_rank(lambda: self._require_fit(asked))
        return asked

    def _require_fit(self, asked: _Asked) -> None:
        assert self._tokens is not None
        longest = max(map(len, self._tokens.encode([item.prompt for item in asked.items])), default=0)
        if longest + asked.task.max_new_tokens > self._context_tokens:
            raise ConfigError(
                f"validation.tasks.{asked.name}: a prompt has {longest} tokens, and with max_new_tokens = "
                f"{asked.task.max_new_tokens} it exceeds the model's {self._context_tokens}; lower max_new_tokens, or "
                "take a task file with fewer examples"
            )

    def run(self, engine: ZeroEngine, group: CpuGroup, *, step: int, tokens: int) -> list[TaskRecord]:
        """Answers and grades every task. All ranks run equally many forward passes."""
        return [self._measure(asked, engine, group, step=step, tokens=tokens) for asked in self._asked]

    def _measure(self, asked: _Asked, engine: ZeroEngine, group: CpuGroup, *, step: int, tokens: int) -> TaskRecord:
        assert self._tokens is not None
        generator = LocalGenerator(
            engine.next_logits,
            self._tokens,
            context_tokens=self._context_tokens,
            device=self._world.device,
            batch_rows=self._batch_rows,
        )
        prompts = [Prompt(item.prompt, item.number) for item in asked.mine]

        def any_works(works: bool) -> bool:
            heartbeat("validate", step)
            return group.any(works)

        sampling = Sampling(asked.task.max_new_tokens, asked.task.stop)
        with engine.decoding():
            completions = generator.generate(prompts, sampling, keep_going=any_works)
        with grading(asked.task.grader) as grades:
            answers = [extracted(completion.text, asked.task.grader) for completion in completions]
            right = sum(
                bool(answer) and grades.verdict(answer, item.answer) == "right"
                for answer, item in zip(answers, asked.mine, strict=True)
            )
        empty = sum(not answer for answer in answers)
        counts = torch.tensor([right, empty], dtype=torch.float64, device=self._world.device)
        all_right, all_empty = (int(count) for count in all_reduce_sum(counts).tolist())
        return TaskRecord(
            step=step,
            tokens=tokens,
            name=asked.name,
            accuracy=all_right / len(asked.items),
            items=len(asked.items),
            empty=all_empty,
        )
