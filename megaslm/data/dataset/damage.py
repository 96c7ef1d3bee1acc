"""What is said of a file of a dataset that is not what was written."""

from pathlib import Path

from megaslm.errors import DataError

PREPARE_AGAIN = "remove the dataset and prepare (or score) it again"


class Damaged(DataError):
    """A file of a dataset is missing, or is not what was written."""

    def __init__(self, path: Path, finding: str) -> None:
        """`finding` goes on after the path: what was found, and what was expected."""
        super().__init__(f"{path} {finding}; {PREPARE_AGAIN}")
        self.path = path
        self.finding = finding
