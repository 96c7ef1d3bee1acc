"""How the files looked that a dataset was made of: DATASET/inputs.json.

By it a later run sees, mostly without reading them, whether they are what they were. It tells of one machine's disks
and is no part of the manifest for that; a dataset is one without it.
"""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from megaslm.corpus.documents import FileRange
from megaslm.corpus.source_bytes import sha256_of_range
from megaslm.dataset.manifest import SourceFile


class Inputs(BaseModel):
    """What is known of files by the names that the manifest gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    looks: dict[str, str] = {}
    """`InputFile.look` of each when it was read."""
    skipped_sha256: dict[str, str] = {}
    """Of the files that were left out because they are not UTF-8, which are no sources."""


def joined(inputs: Iterable[Inputs]) -> Inputs:
    """Of all together; what two runs saw differently is not known."""
    looks: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for each in inputs:
        skipped |= each.skipped_sha256
        for label, look in each.looks.items():
            looks[label] = look if looks.get(label, look) == look else ""
    return Inputs(looks={label: look for label, look in looks.items() if look}, skipped_sha256=skipped)


def has_changed(file_range: FileRange, record: SourceFile | None, inputs: Inputs) -> bool:
    """Whether a stretch of a file is not what was recorded when it was read; null for `record` of a skipped file.

    A file that looks as it did is what it was, any other is read. Raises DataError where it cannot be.
    """
    file = file_range.file
    if record is not None and (file.bytes, file_range.stop) != (record.bytes, record.stop):
        return True
    recorded = record.sha256 if record is not None else inputs.skipped_sha256.get(file.label)
    look = inputs.looks.get(file.label, "" if record is None else record.version)
    # Versions before this file recorded nothing of what was skipped.
    if recorded is None or (file.look and file.look == look):
        return False
    return sha256_of_range(file_range) != recorded
