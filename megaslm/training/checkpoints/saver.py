"""Saves: a copy on the host, a thread that writes it meanwhile, and a commit once all ranks have written.

The threads call no collective. Between two steps the ranks exchange whether their threads are done. When all are done,
the first rank writes the file list and renames the folder. A thread removes old checkpoints, too.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from megaslm.config.retention import Retention
from megaslm.config.run_files import CONFIG, LAYOUT, PROGRESS
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, gather_objects, on_first_rank
from megaslm.engine.heartbeat import heartbeat
from megaslm.engine.training_state import TrainingState
from megaslm.errors import CheckpointError, SaveFailed
from megaslm.files import sync, unfinished
from megaslm.training.checkpoints.file_list import FileList, describe, write_file_list
from megaslm.training.checkpoints.layout import Layout
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.state_files import HostCopy
from megaslm.training.checkpoints.store import (
    check_sizes,
    prune,
    remove_checkpoint,
    remove_folder,
    step_folder,
)


class PartWrite:
    """Writes, syncs and hashes files into a folder that other ranks write into too."""

    def __init__(self, folder: Path, progress: Progress, copy: HostCopy, rank: int, texts: Mapping[str, str]) -> None:
        """Starts at once. `copy` must not change until the end. `texts` are further files, by name."""
        self.folder = folder
        self.progress = progress
        self.files: FileList = {}
        """The files written, set at the end."""
        self.failure: Exception | None = None
        """Why the write failed, set at the end."""
        self._copy = copy
        self._rank = rank
        self._texts = texts
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread is still writing."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Returns when the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # The main thread tells the other ranks at the next step.
            self.failure = error

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = self._copy.write(self.folder, self._rank)
        for name, text in self._texts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
            paths.append(self.folder / name)
        for path in paths:
            sync(path)
            self.files[path.name] = describe(path)


class Pruning:
    """A thread that removes the checkpoints that `retention` does not keep. A failure is a warning."""

    def __init__(
        self,
        checkpoints: Path,
        retention: Retention,
        *,
        up_to_step: int,
        corrupt: Sequence[int],
        say: Callable[[str], None],
    ) -> None:
        """Starts at once. See `prune`."""

        def run() -> None:
            try:
                prune(checkpoints, retention, up_to_step=up_to_step, corrupt=corrupt)
            except OSError as error:
                say(f"warning: an old checkpoint cannot be removed: {error}")

        self._thread = threading.Thread(target=run, name="pruning", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when the thread has ended."""
        self._thread.join()


class Saver:
    """Writes the checkpoints of a run, one at a time; every method is called on all ranks."""

    def __init__(
        self,
        checkpoints: Path,
        state: TrainingState,
        config: str,
        world: World,
        cpu_group: CpuGroup,
        *,
        retention: Retention,
        max_failed: int,
        corrupt: tuple[int, ...],
        say: Callable[[str], None],
        on_saved: Callable[[Progress], None],
        how_to_start_again: Callable[[], str],
    ) -> None:
        """Writes nothing yet.

        Args:
            checkpoints: the folder of the run's checkpoints.
            state: the state to save.
            config: the resolved configuration, stored in every checkpoint.
            world: the ranks.
            cpu_group: of the ranks.
            retention: which checkpoints are kept.
            max_failed: failed saves in a row that stop the run.
            corrupt: steps whose checkpoints are known to be corrupt.
            say: prints a line, on the first rank.
            on_saved: called on all ranks with the progress of each complete checkpoint.
            how_to_start_again: the advice for a job that has failed, for its last message.
        """
        self._checkpoints = checkpoints
        self._state = state
        self._config = config
        self._world = world
        self._cpu_group = cpu_group
        self._retention = retention
        self._max_failed = max_failed
        self._corrupt = set(corrupt)
        self._say = say
        self._on_saved = on_saved
        self._how_to_start_again = how_to_start_again
        self._layout = Layout.of(gather_objects(state.fragments))
        self._copy = HostCopy(state, self._layout.written_by(world.rank))
        self._write: PartWrite | None = None
        self._pruning: Pruning | None = None
        self._failed_in_a_row = 0

    @property
    def running_and_failed(self) -> tuple[int, int]:
        """Whether this rank's part of the current save is running and has failed, as 0 or 1.

        The maximum over all ranks goes into `settle`.
        """
        if self._write is None:
            return 0, 0
        return int(self._write.is_running), int(self._write.failure is not None)

    def begin(self, progress: Progress) -> None:
        """Waits for the save under way, copies the state and starts to write it."""
        self.wait()
        heartbeat("save", progress.step)
        self._copy.take()
        folder = unfinished(step_folder(self._checkpoints, progress.step))
        texts = self._descriptions(progress) if self._world.is_first else {}
        self._write = PartWrite(folder, progress, self._copy, self._world.rank, texts)

    def settle(self, running: int, failed: int) -> None:
        """Ends a save when no rank is writing any more: commits it, or removes it where a rank has failed.

        Raises SaveFailed where `max_failed` saves in a row have failed.
        """
        if self._write is None or running:
            return
        write, self._write = self._write, None
        if failed:
            self._abandon(write)
        else:
            self._commit(write)

    def wait(self, *, may_fail: bool = True) -> None:
        """Returns when no save is under way and the first rank has removed the checkpoints that are not kept.

        Raises SaveFailed where the save failed, and `may_fail` is false or it is the last of `max_failed` in a row.
        """
        if self._write is not None:
            heartbeat("save", self._write.progress.step)
            self._write.wait()
            failed = self._cpu_group.any(self._write.failure is not None)
            if not may_fail:
                self._max_failed = 1
            self.settle(0, int(failed))
        self._wait_for_pruning()

    def _descriptions(self, progress: Progress) -> dict[str, str]:
        layout = replace(self._layout, adam_steps=self._state.adam_steps())
        return {PROGRESS: progress.as_json(), LAYOUT: layout.as_json(), CONFIG: self._config}

    def _commit(self, write: PartWrite) -> None:
        files = {name: described for share in gather_objects(write.files) for name, described in share.items()}
        folder = step_folder(self._checkpoints, write.progress.step)
        failure = on_first_rank(lambda: self._name(write, folder, files))
        if failure is not None:
            self._abandon(write, failure)
            return
        self._failed_in_a_row = 0
        self._corrupt.discard(write.progress.step)
        self._say(f"saved step {write.progress.step}: {folder}")
        self._on_saved(write.progress)
        if self._world.is_first:
            self._prune(write.progress.step)

    def _name(self, write: PartWrite, folder: Path, files: FileList) -> str | None:
        """Commits the written files as a checkpoint. Returns the reason where that fails."""
        try:
            check_sizes(write.folder, files)
            write_file_list(write.folder, files)
            if folder.exists():
                remove_checkpoint(folder)
            write.folder.rename(folder)
            sync(self._checkpoints)
        except (OSError, CheckpointError) as error:
            return _reason(error)
        return None

    def _prune(self, step: int) -> None:
        """Prunes in a thread, since removing a large checkpoint takes long."""
        self._wait_for_pruning()
        self._pruning = Pruning(
            self._checkpoints, self._retention, up_to_step=step, corrupt=tuple(self._corrupt), say=self._say
        )

    def _wait_for_pruning(self) -> None:
        if self._pruning is not None:
            self._pruning.wait()

    def _abandon(self, write: PartWrite, failure: str | None = None) -> None:
        own = failure if self._world.is_first and failure is not None else _reason(write.failure)
        reasons = [f"rank {rank}: {reason}" for rank, reason in enumerate(gather_objects(own)) if reason is not None]
        reasons += on_first_rank(lambda: _removed(write.folder))
        self._failed_in_a_row += 1
        failed = f"step {write.progress.step}: the checkpoint could not be written: {'; '.join(reasons)}"
        if self._failed_in_a_row >= self._max_failed:
            raise SaveFailed(
                f"{failed}; {self._failed_in_a_row} in a row have failed: the run stops. Make room in "
                f"{self._checkpoints} or repair it, then {self._how_to_start_again()}"
            )
        self._say(f"warning: {failed}; training continues; the run stops after {self._max_failed} failures in a row")


def _removed(folder: Path) -> list[str]:
    """Removes an unfinished save. Returns why that failed, if it did: the next start tries again."""
    try:
        remove_folder(folder)
    except OSError as error:
        return [f"its remains cannot be removed: {error}"]
    return []


def _reason(failure: Exception | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {failure}"
