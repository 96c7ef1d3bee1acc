"""DATASET/inputs.json: the state of the input files when a dataset was made.

A later run sees by it whether the files have changed, mostly without reading them. It describes one machine's disks, so
it is not part of the manifest. A dataset is complete without it.
"""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from megaslm.corpus.documents import FileRange
from megaslm.corpus.source_bytes import sha256_of_range
from megaslm.dataset.manifest import SourceFile


class Inputs(BaseModel):
    """The state of files, by their names in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    looks: dict[str, str] = {}
    """`InputFile.look` of each file when it was read."""
    skipped_sha256: dict[str, str] = {}
    """Hashes of the files that were left out because they are not UTF-8. They are not among the sources."""


def joined(inputs: Iterable[Inputs]) -> Inputs:
    """All records together. A file that two records describe differently is dropped."""
    looks: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for each in inputs:
        skipped |= each.skipped_sha256
        for label, look in each.looks.items():
            looks[label] = look if looks.get(label, look) == look else ""
    return Inputs(looks={label: look for label, look in looks.items() if look}, skipped_sha256=skipped)


def has_changed(file_range: FileRange, record: SourceFile | None, inputs: Inputs) -> bool:
    """Whether a stretch of a file differs from its record. `record` is None for a skipped file.

    A file with an unchanged `look` is unchanged, any other is read. Raises DataError where it cannot be read.
    """
    file = file_range.file
    if record is not None and (file.bytes, file_range.stop) != (record.bytes, record.stop):
        return True
    recorded = record.sha256 if record is not None else inputs.skipped_sha256.get(file.label)
    look = inputs.looks.get(file.label, "" if record is None else record.version)
    # Versions before inputs.json did not record skipped files.
    if recorded is None or (file.look and file.look == look):
        return False
    return sha256_of_range(file_range) != recorded
