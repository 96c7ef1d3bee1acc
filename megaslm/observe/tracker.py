"""An experiment tracker as one more viewer of a run: wandb, or trackio, which has the same calls."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from megaslm.errors import ConfigError
from megaslm.files import write_file
from megaslm.observe.records import Record
from megaslm.observe.run_description import RunDescription
from megaslm.observe.scalars import scalars_of

Library = Literal["wandb", "trackio"]
NUMBER = "tracker-id"
"""The file of a run folder that holds its number."""


def check_tracker(library: Library | None) -> None:
    """Raises ConfigError where the tracker is not installed."""
    if library is not None and find_spec(library) is None:
        raise ConfigError(
            f"log.tracker = {library}: the package {library} is not installed; run `pip install 'megaslm[{library}]'` "
            "or set log.tracker to null"
        )


class Tracker:
    """One run of a tracker. It gets the tags of TensorBoard's scalars, with the step and the tokens as two more."""

    def __init__(self, library: Library, *, project: str, run: Path, description: RunDescription) -> None:
        """Opens a run in the project, or continues that of an earlier attempt, whose number is in the run folder.

        Raises OSError where that fails, as `write` does.
        """
        self.name = f"log.tracker = {library}"
        self.lost_entries = 0
        """Records that the tracker did not take."""
        self._library: Any = import_module(library)
        self._has_own_steps = library == "trackio"
        number = _number_of(run)
        name = f"{run.absolute().parent.name}-{run.name}-{number}"
        with _as_os_error():
            if self._has_own_steps:
                self._library.init(project=project, name=name, config=description.settings, resume="allow")
            else:
                # By its own count of calls, wandb would drop the steps that a resumed run makes again. And it would
                # take over the output of this process.
                settings = self._library.Settings(console="off")
                self._library.init(
                    project=project,
                    name=name,
                    id=number,
                    resume="allow",
                    dir=run,
                    config=description.settings,
                    settings=settings,
                )
                self._library.define_metric("*", step_metric="step")

    def write(self, records: Sequence[Record]) -> None:
        """Hands records over.

        Raises:
            OSError: the tracker failed. Its records are lost, and counted.
        """
        delivered = 0
        try:
            with _as_os_error():
                for step, of_step in groupby(records, key=lambda record: record.step):
                    together = list(of_step)
                    values = {tag: value for record in together for tag, value in scalars_of(record).items()}
                    if values and self._has_own_steps:
                        self._library.log(values, step=step)
                    elif values:
                        self._library.log({"step": step, **values})
                    delivered += len(together)
        finally:
            self.lost_entries += len(records) - delivered

    def alert(self, title: str, text: str) -> None:
        """Sends an alert. Raises OSError where the tracker failed."""
        with _as_os_error():
            self._library.alert(title=title, text=text, level=self._library.AlertLevel.WARN)

    def sync(self) -> None:
        """Does nothing: the tracker sends in its own time."""

    def close(self) -> None:
        """Ends the run. Raises OSError where the tracker failed."""
        with _as_os_error():
            self._library.finish()


def _number_of(run: Path) -> str:
    """The number under which trackers know a run: folders of one name are many, and one folder may be begun anew."""
    path = run / NUMBER
    if not path.is_file():
        write_file(path, uuid4().hex[:8])
    return path.read_text(encoding="utf-8")


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What fails in a tracker fails as a full disk does: it is told, and training continues."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
