"""What a scoring job is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.schema import Precision


@dataclass(frozen=True)
class ScoreSettings:
    """How the reference is run."""

    precision: Precision = "auto"
    document_isolation: bool = True
    batch_rows: int = 16
    """Rows read at once. Every batch has as many, so that a row's losses do not depend on the number of ranks."""
    entropy: bool = False
    """Whether `ref_entropy` is stored too: of the reference's predictions, from the pass that gives the losses."""
    window: int | None = None
    """Tokens that the reference sees at once; null: a row or, where it has fewer positions, as many as these."""
    stride: int | None = None
    """Tokens between the starts of two windows of a row; has to be said where a window is shorter than a row."""


@dataclass(frozen=True)
class ScoreRequest:
    """What is scored by what, and where it goes."""

    reference: Path
    """A Hugging Face folder."""
    dataset: str | Path
    """A folder or a URL."""
    output: str | Path
    """A folder or a URL."""
    settings: ScoreSettings
    """How the reference is run."""
    working: Path | None = None
    """For an output at a URL: a local folder, which all ranks share, for parts on their way there."""
    cache: Path = Path("~/.cache/megaslm")
    """For a dataset at a URL: the folder on each host in which what is fetched is kept."""
