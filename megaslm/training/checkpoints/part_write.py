"""One rank's part of a save, in a thread that calls no collective."""

import threading
from collections.abc import Mapping
from pathlib import Path

from megaslm.jobs.durable import sync
from megaslm.training.checkpoints.file_list import FileList, describe
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.state_files import HostCopy


class PartWrite:
    """Writes, syncs and hashes files into a folder that other ranks write into too."""

    def __init__(self, folder: Path, progress: Progress, copy: HostCopy, rank: int, texts: Mapping[str, str]) -> None:
        """Begins at once; `copy` must stay as it is until the end. `texts` are further files, by name."""
        self.folder = folder
        self.progress = progress
        self.files: FileList = {}
        """What was written, once it is over."""
        self.failure: Exception | None = None
        """Why it was not, once it is over."""
        self._copy = copy
        self._rank = rank
        self._texts = texts
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it is not over yet."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Returns when it is over."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # It is the main thread that tells the others, at the next step.
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
