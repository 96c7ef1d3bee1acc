"""The folder in which a dataset comes into being, and what of it is done already.

OUTPUT/.prepare holds the plan and a note of each finished task, so that many processes can share the tasks. It is
removed when the manifest has been written.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from megaslm.data.dataset.manifest import TOKENIZER
from megaslm.data.preparing.inputs import has_changed
from megaslm.data.preparing.prepare_task import TaskOutcome
from megaslm.data.text.tasks import Task
from megaslm.errors import DataError
from megaslm.jobs.durable import write_file
from megaslm.jobs.ledger import Ledger
from megaslm.jobs.locks import locked
from megaslm.jobs.read_back import read_back

_FOLDER = ".prepare"
_PLAN = "plan.json"
_OURS = (TOKENIZER, "train", "heldout")


class Plan(BaseModel):
    """What is being prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe_sha256: str
    """Fingerprint of the recipe."""
    files_sha256: str
    """Fingerprint of the files' names, sizes and versions."""


class Workplace(Ledger[TaskOutcome]):
    """An output folder in which a dataset is being made."""

    def __init__(self, output: Path) -> None:
        super().__init__(output / _FOLDER, TaskOutcome, place=str(output))
        self._output = output

    @property
    def claim(self) -> Path:
        """The file whose lock the first process of a run holds while it works."""
        return self.folder / "lock"

    def begin(self, plan: Plan, tasks: Sequence[Task], *, alone: bool) -> None:
        """Go on with the same plan. Where no one else is at work here, begin anew if the files have changed since, or
        if another recipe was not yet gone on with as far as one task."""
        path = self.folder / _PLAN
        if alone:
            self.forget_runs()
        if path.is_file():
            found = read_back(Plan, path.read_bytes(), str(path), f"remove {self._output} and prepare it again")
            # A share leaves that look to whoever joins them, who reads no file of another machine again and again.
            if found == plan and not (alone and any(map(self._has_changed, tasks))):
                return
            if found.recipe_sha256 != plan.recipe_sha256 and (self.has_outcomes() or not alone):
                raise DataError(
                    f"{self._output} holds the unfinished dataset of another recipe; "
                    "remove it or choose another output folder"
                )
            if not alone:
                raise DataError(
                    f"{self._output}: the input files have changed since its first part was prepared; "
                    "remove it and prepare all parts again"
                )
            self._clear()
        write_file(path, plan.model_dump_json())

    def forget_plan(self) -> None:
        """Nothing has been done by it."""
        (self.folder / _PLAN).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the notes of a finished dataset."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _has_changed(self, task: Task) -> bool:
        """Whether a task is done and its files are no longer what they were then."""
        outcome = self.outcome(task.name)
        if outcome is None:
            return False
        recorded = {(source.path, source.start): source for source in outcome.sources}
        return any(
            has_changed(piece, recorded.get((piece.file.label, piece.start)), outcome.inputs) for piece in task.pieces
        )

    def _clear(self) -> None:
        self.forget_all()
        for name in _OURS:
            shutil.rmtree(self._output / name, ignore_errors=True)


@contextmanager
def claimed(output: Path, *, alone: bool) -> Iterator[Workplace]:
    """Claim `output`, to begin or to go on there: alone, or together with others who do other tasks.

    Raises DataError where another process is at work there, or where it holds anything else than unfinished work.
    """
    folder = output / _FOLDER
    if output.exists() and not folder.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty and holds no unfinished dataset; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{output}: another process is preparing this dataset; wait for it or stop it"
    workplace = Workplace(output)
    with locked(workplace.claim, shared=not alone, busy=busy):
        yield workplace
