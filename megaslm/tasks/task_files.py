"""Task files and suites by name or path."""

import re
from collections.abc import Sequence
from pathlib import Path

from megaslm.config.load import load
from megaslm.config.task import TASK_FILES, Suite, Task
from megaslm.errors import ConfigError

TASKS = Path("configs/eval/tasks")
_PROJECT = Path(__file__).resolve().parents[2]


def load_tasks(names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Task]:
    """Tasks by name: of a file in configs/eval/tasks, or the path of a YAML file, whose name is the task's.

    `overrides` are settings of every task, such as `grader=strict`.

    Raises:
        ConfigError: there is no such task, a file is wrong, or two have the same name.
    """
    tasks: dict[str, Task] = {}
    for given in names:
        path = _file_of(given)
        if path.stem in tasks:
            raise ConfigError(f"--tasks: {path.stem} is there twice; tasks need names of their own")
        tasks[path.stem] = load(Task, path, list(overrides)).value
    return tasks


def load_suite(path: Path) -> Suite:
    """A suite. Raises ConfigError where the file is wrong."""
    return load(Suite, path).value


def _file_of(given: str) -> Path:
    if given.endswith(TASK_FILES):
        return Path(given)
    for folder in (TASKS, _PROJECT / TASKS):
        if (folder / f"{given}.yaml").is_file():
            return folder / f"{given}.yaml"
    # A file without data of its own or of its base is a base for others.
    shipped = (_PROJECT / TASKS).glob("*.yaml")
    known = sorted(path.stem for path in shipped if re.search(r"^(?:files|base):", path.read_text(), re.MULTILINE))
    raise ConfigError(f"--tasks: {given} is no task; it is one of {', '.join(known)}, or the path of a YAML file")
