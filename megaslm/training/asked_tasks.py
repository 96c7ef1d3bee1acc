"""The tasks that a run measures while it trains, read and compared with its model's context. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.measuring import ValidationTask
from megaslm.config.task import Task
from megaslm.errors import ConfigError
from megaslm.generation.text_tokens import TextTokens, longest_pair
from megaslm.tasks.items import Item, items_of
from megaslm.tasks.losses import pairs_of, require_losses
from megaslm.tasks.task_files import load_tasks


@dataclass(frozen=True)
class AskedTask:
    """A task, and all of its items that are measured."""

    name: str
    task: Task
    measures_losses: bool
    items: tuple[Item, ...]

    def require_fit(self, tokens: TextTokens, context_tokens: int) -> None:
        """Raises ConfigError where its texts do not fit into a model's context of `context_tokens`."""
        if self.measures_losses:
            longest = longest_pair(tokens, pairs_of(self.items))
            if longest > context_tokens:
                raise ConfigError(
                    f"validation.tasks.{self.name}: a prompt with its solution or choice has {longest} tokens, which "
                    f"exceeds the model's {context_tokens}; take a task file with fewer examples"
                )
            return
        longest = max(map(len, tokens.encode([item.prompt for item in self.items])), default=0)
        if longest + self.task.max_new_tokens > context_tokens:
            raise ConfigError(
                f"validation.tasks.{self.name}: a prompt has {longest} tokens, and with max_new_tokens = "
                f"{self.task.max_new_tokens} it exceeds the model's {context_tokens}; lower max_new_tokens, or "
                "take a task file with fewer examples"
            )


def read_task(name: str, chosen: ValidationTask) -> AskedTask:
    """The task `name` of a run.

    Raises:
        ConfigError: the task file is wrong, has nothing to measure, or runs programs.
        DataError: the data of the task is missing or of another format.
    """
    (task,) = load_tasks([chosen.task]).values()
    task = task.model_copy(update={"max_new_tokens": chosen.max_new_tokens})
    measures_losses = chosen.measure == "losses"
    if task.interpreter and not measures_losses:
        raise ConfigError(
            f"validation.tasks.{name}: the task {chosen.task} runs programs, which a training run does not; "
            "measure it with `megaslm evaluate` on an exported model"
        )
    items = tuple(items_of(task, Path(chosen.data), limit=chosen.max_items))
    if measures_losses:
        require_losses(f"validation.tasks.{name}", task, items)
    return AskedTask(name, task, measures_losses, items)
