"""The folder in which a dataset comes into being, and what of it is done already.

OUTPUT/.prepare holds the plan and one marker a finished task, so that an interrupted run is taken up where it stopped.
It is removed when the manifest has been written.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from megaslm.data.durable import write_file
from megaslm.data.manifest import MANIFEST, TOKENIZER
from megaslm.data.prepare_task import TaskOutcome
from megaslm.errors import DataError

_FOLDER = ".prepare"
_PLAN = "plan.json"
_LOCK = "lock"
_OURS = (TOKENIZER, "train", "heldout")


class Plan(BaseModel):
    """What is being prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe_sha256: str
    """Fingerprint of the recipe."""
    files_sha256: str
    """Fingerprint of the files' names, sizes and times."""


class Workplace:
    """An output folder that this process alone writes to."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._folder = output / _FOLDER

    def outcome(self, task: int) -> TaskOutcome | None:
        """What a task of an earlier run did; null where it is still to be done."""
        marker = self._marker(task)
        return TaskOutcome.model_validate_json(marker.read_text(encoding="utf-8")) if marker.is_file() else None

    def keep(self, task: int, outcome: TaskOutcome) -> None:
        """Note that a task is done."""
        write_file(self._marker(task), outcome.model_dump_json())

    def remove(self) -> None:
        """Remove the notes of a finished dataset."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, plan: Plan) -> None:
        """Go on with the same plan; begin anew where the files have changed since."""
        path = self._folder / _PLAN
        if path.is_file():
            found = Plan.model_validate_json(path.read_text(encoding="utf-8"))
            if found == plan:
                return
            if found.recipe_sha256 != plan.recipe_sha256:
                raise DataError(
                    f"{self._output} holds the unfinished dataset of another recipe; "
                    "remove it or choose another output folder"
                )
            self._clear()
        write_file(path, plan.model_dump_json())

    def _clear(self) -> None:
        for marker in self._folder.glob("task-*"):
            marker.unlink()
        for name in _OURS:
            shutil.rmtree(self._output / name, ignore_errors=True)

    def _marker(self, task: int) -> Path:
        return self._folder / f"task-{task:05d}.json"


@contextmanager
def claimed(output: Path, plan: Plan) -> Iterator[Workplace]:
    """Claim `output` for a plan, to begin or to go on with it.

    Raises DataError where another process is at work there, where it holds the unfinished work of another recipe, or
    anything else than a dataset.
    """
    folder = output / _FOLDER
    if output.exists() and not folder.exists() and not (output / MANIFEST).exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty and holds no dataset; choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{output}: another process is preparing this dataset; wait for it or stop it") from error
        workplace = Workplace(output)
        workplace.start(plan)
        yield workplace
