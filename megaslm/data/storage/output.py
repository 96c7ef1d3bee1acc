"""Where a dataset goes: a local folder or, part by part, object storage."""

import shutil
from pathlib import Path
from typing import Protocol

from megaslm.config.credentials import refuse_credentials
from megaslm.config.schema import Split
from megaslm.data.dataset.manifest import (
    BESIDE_ROWS,
    MANIFEST,
    TOKENIZER,
    Manifest,
    Part,
    read_manifest,
    write_manifest,
)
from megaslm.data.dataset.merged_index import merge_index
from megaslm.errors import ConfigError, DataError


class Output(Protocol):
    """What the making of a dataset asks of the place that it goes to; every step may be repeated after a kill."""

    @property
    def place(self) -> str:
        """The folder or URL."""

    def finished(self) -> Manifest | None:
        """The manifest of the dataset that is finished there; null where none is."""

    def beside(self, name: str) -> bytes | None:
        """A file that tells about the rows of the dataset that is finished there; null where it has none."""

    def begin(self, plan: str) -> None:
        """Claim the place for a plan. Raises DataError where anything else is there."""

    def extend(self, manifest: Manifest) -> None:
        """Get ready to add parts to the dataset that is finished there, which stays one until it is finished anew."""

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """Take a part that is finished in the working folder."""

    def finish(self, manifest: Manifest) -> None:
        """Join the parts and write the manifest, which makes it a dataset. Raises DataError where a part is missing."""

    def tidy_up(self) -> None:
        """Once it is finished: remove from the working folder what is no longer needed there."""


class LocalOutput:
    """A folder, which is its own working folder or has one from which finished parts are moved in the end."""

    def __init__(self, folder: Path, working: Path | None = None) -> None:
        """Nothing is looked at or written yet. Both are on one file system."""
        self._folder = folder
        self._working = folder if working is None else working

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def finished(self) -> Manifest | None:
        """The manifest of the dataset in the folder; null where none is."""
        return read_manifest(self._folder) if (self._folder / MANIFEST).exists() else None

    def beside(self, name: str) -> bytes | None:
        """A file of the folder; null where there is none."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def begin(self, plan: str) -> None:
        """The working folder has been claimed already."""

    def extend(self, manifest: Manifest) -> None:
        """New parts wait in the working folder."""

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """The part is where it belongs, or waits in the working folder."""

    def finish(self, manifest: Manifest) -> None:
        """Write the merged indices and the manifest. Raises DataError where a part is not what its record tells."""
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                for part in share.parts:
                    self._take(f"{split}/{domain}/{part.name}")
                folder = self._folder / split / domain
                rows = merge_index(folder, share.parts)
                if rows != share.rows:
                    raise DataError(f"{folder} has {rows} rows, its parts {share.rows}; remove it and make it again")
        for name in (TOKENIZER, *BESIDE_ROWS):
            self._take(name)
        write_manifest(self._folder, manifest)

    def tidy_up(self) -> None:
        """What the working folder held is in its place."""

    def _take(self, name: str) -> None:
        """Move a file or folder out of the working folder, if it is there, into the place of what has its name."""
        source, target = self._working / name, self._folder / name
        if source == target or not source.exists():
            return
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def output_at(place: str, working: Path | None, *, local_working: str = "") -> tuple[Output, Path]:
    """The output at a folder or URL, and the local folder in which its parts are written.

    `local_working` is the name of that folder within a local output, where it is not the output itself. Raises
    ConfigError where a URL comes without a working folder or with credentials, or a local folder with the former.
    """
    from megaslm.data.storage.remote import is_remote

    refuse_credentials(place)
    if not is_remote(place):
        if working is not None:
            raise ConfigError(f"--work {working}: {place} is a local folder, in which the work is done already")
        folder = Path(place)
        return LocalOutput(folder, folder / local_working), folder / local_working
    if working is None:
        raise ConfigError(f"{place} is remote: name a local folder for parts on their way there with --work")
    from megaslm.data.storage.remote_output import RemoteOutput

    return RemoteOutput(place, working), working
