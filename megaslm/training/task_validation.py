"""Tasks during training: the live model answers, with greedy choices, and is graded; or its losses are measured."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megaslm.config.measuring import ValidationSection, ValidationTask
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, all_reduce_sum, gather_objects, on_first_rank
from megaslm.engine.heartbeat import heartbeat
from megaslm.engine.zero import ZeroEngine
from megaslm.generation.decoding_loop import KeepGoing
from megaslm.generation.local import LocalGenerator
from megaslm.generation.log_likelihood import continuation_losses
from megaslm.generation.sampling import Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.observe.records import TaskLossRecord, TaskRecord
from megaslm.tasks.grading import extracted, grading
from megaslm.tasks.items import Item
from megaslm.tasks.losses import Losses, losses_of, measured_items, pairs_of
from megaslm.training.asked_tasks import AskedTask, read_task


class TaskValidation:
    """The tasks of a run, read once. Every method is called on all ranks."""

    def __init__(self, section: ValidationSection, world: World, tokenizer: Path, *, context_tokens: int) -> None:
        """`tokenizer`: the folder of the dataset's. `context_tokens`: most tokens that the model was built for.

        Raises:
            ConfigError: a task file is wrong, has nothing to measure, or its prompts do not fit into the model's
                context.
            DataError: the data of a task is missing or of another format.
        """
        self._world, self._context_tokens, self._batch_rows = world, context_tokens, section.batch_rows
        self._tokens = TextTokens.of_folder(tokenizer) if section.tasks else None
        self._asked = [self._read(name, chosen) for name, chosen in section.tasks.items()]

    def _read(self, name: str, chosen: ValidationTask) -> AskedTask:
        asked = read_task(name, chosen)
        assert self._tokens is not None
        on_first_rank(partial(asked.require_fit, self._tokens, self._context_tokens))
        return asked

    def _mine(self, asked: AskedTask) -> tuple[Item, ...]:
        """The items that this rank measures."""
        return asked.items[self._world.rank :: self._world.size]

    def run(self, engine: ZeroEngine, group: CpuGroup, *, step: int, tokens: int) -> list[TaskRecord | TaskLossRecord]:
        """Measures every task. All ranks run equally many forward passes."""

        def any_works(works: bool) -> bool:
            heartbeat("validate", step)
            return group.any(works)

        records: list[TaskRecord | TaskLossRecord] = []
        for asked in self._asked:
            if asked.measures_losses:
                losses = self._losses(asked, engine, any_works)
                records.append(_loss_record(asked, losses, step=step, tokens=tokens))
            else:
                records.append(self._answers(asked, engine, any_works, step=step, tokens=tokens))
        return records

    def _losses(self, asked: AskedTask, engine: ZeroEngine, any_works: KeepGoing) -> Losses:
        assert self._tokens is not None

        def measure(ids: Tensor, wanted: Tensor) -> Tensor:
            # As in `megaslm evaluate`, a text is one document.
            rows, length = wanted.shape
            bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=ids.device)
            return engine.measure(ids, bounds).losses[wanted]

        with engine.evaluating():
            found = continuation_losses(
                measure,
                self._tokens,
                pairs_of(self._mine(asked)),
                device=self._world.device,
                batch_rows=self._batch_rows,
                keep_going=any_works,
            )
        of_ranks = gather_objects(measured_items(self._mine(asked), found))
        return losses_of(item for of_rank in of_ranks for item in of_rank)

    def _answers(
        self, asked: AskedTask, engine: ZeroEngine, any_works: KeepGoing, *, step: int, tokens: int
    ) -> TaskRecord:
        assert self._tokens is not None
        generator = LocalGenerator(
            engine.next_logits,
            self._tokens,
            context_tokens=self._context_tokens,
            device=self._world.device,
            batch_rows=self._batch_rows,
        )
        prompts = [Prompt(item.prompt, item.number) for item in self._mine(asked)]
        sampling = Sampling(asked.task.max_new_tokens, asked.task.stop)
        with engine.decoding():
            completions = generator.generate(prompts, sampling, keep_going=any_works)
        with grading(asked.task.grader) as grades:
            answers = [extracted(completion.text, asked.task.grader) for completion in completions]
            right = sum(
                bool(answer) and grades.verdict(answer, item.answer) == "right"
                for answer, item in zip(answers, self._mine(asked), strict=True)
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


def _loss_record(asked: AskedTask, losses: Losses, *, step: int, tokens: int) -> TaskLossRecord:
    return TaskLossRecord(
        step=step,
        tokens=tokens,
        name=asked.name,
        items=len(asked.items),
        nats_per_token=_mean(losses.nats_per_token),
        bits_per_byte=losses.bits_per_byte,
        choice_accuracy=_mean(losses.is_chosen),
        choice_accuracy_per_byte=_mean(losses.is_chosen_per_byte),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
