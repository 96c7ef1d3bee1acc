"""Where a dataset goes: a local folder or, part by part, object storage."""

from pathlib import Path
from typing import Protocol

from megaslm.config.schema import Split
from megaslm.data.dataset.manifest import MANIFEST, Manifest, Part, read_manifest, write_manifest
from megaslm.data.dataset.merged_index import merge_index
from megaslm.errors import ConfigError, DataError


class Output(Protocol):
    """What the making of a dataset asks of the place that it goes to; every step may be repeated after a kill."""

    @property
    def place(self) -> str:
        """The folder or URL."""

    def finished(self) -> Manifest | None:
        """The manifest of the dataset that is finished there; null where none is."""

    def begin(self, plan: str) -> None:
        """Claim the place for a plan. Raises DataError where anything else is there."""

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """Take a part that is finished in the working folder."""

    def finish(self, manifest: Manifest) -> None:
        """Join the parts and write the manifest, which makes it a dataset. Raises DataError where a part is missing."""

    def tidy_up(self) -> None:
        """Once it is finished: remove from the working folder what is no longer needed there."""


class LocalOutput:
    """A folder, which is its own working folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is looked at or written yet."""
        self._folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def finished(self) -> Manifest | None:
        """The manifest of the dataset in the folder; null where none is."""
        return read_manifest(self._folder) if (self._folder / MANIFEST).exists() else None

    def begin(self, plan: str) -> None:
        """The working folder has been claimed already."""

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """The part is where it belongs."""

    def finish(self, manifest: Manifest) -> None:
        """Write the merged indices and the manifest. Raises DataError where a part is not what its record tells."""
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                folder = self._folder / split / domain
                rows = merge_index(folder, share.parts)
                if rows != share.rows:
                    raise DataError(f"{folder} has {rows} rows, its parts {share.rows}; remove it and prepare again")
        write_manifest(self._folder, manifest)

    def tidy_up(self) -> None:
        """All that is there is the dataset."""


def output_at(place: str, working: Path | None) -> tuple[Output, Path]:
    """The output at a folder or URL, and the local folder in which its parts are written.

    Raises ConfigError where a URL comes without a working folder, or a local folder with one.
    """
    from megaslm.data.storage.remote import is_remote

    if not is_remote(place):
        if working is not None:
            raise ConfigError(f"--work {working}: {place} is a local folder, in which the work is done already")
        return LocalOutput(Path(place)), Path(place)
    if working is None:
        raise ConfigError(f"{place} is remote: name a local folder for parts on their way there with --work")
    from megaslm.data.preparing.remote_output import RemoteOutput

    return RemoteOutput(place, working), working
