"""The request of a scoring job."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from megaslm.config.schema import Compile, FlashAttention, Precision
from megaslm.dataset.manifest import RunStep
from megaslm.scoring.derivation_plan import REF_LOSS


@dataclass(frozen=True)
class ScoreSettings:
    """How the reference is run."""

    precision: Precision = "auto"
    compile: Compile = "auto"
    """Whether the decoder layers are compiled. The losses differ by rounding; the output does not record it."""
    flash_attention: FlashAttention = "FA2"
    """Which FlashAttention computes attention on a GPU."""
    document_isolation: bool = True
    batch_rows: int = 16
    """Rows per batch. All batches are equally large, so that a row's losses do not depend on the number of ranks."""
    entropy: bool = False
    """Whether `ref_entropy`, the entropy of the reference's predictions, is stored too. It comes from the same pass."""
    top_logits: int = 0
    """How many of the reference's most likely tokens are stored per target, for `slm.distill`."""
    window: int | None = None
    """Tokens of context of the reference. None: a row, or the reference's number of positions if that is smaller."""
    stride: int | None = None
    """Tokens between the starts of two windows of a row or, under `align`, of a document. Required if a window is
    shorter than a row; under `align`, None is half a window."""
    align: bool = False
    """Whether the reference has a tokenizer of its own, and its losses are carried over to the rows' tokens."""


@dataclass(frozen=True)
class ScoreRequest:
    """The dataset to score, the reference and the output."""

    reference: Path
    """A Hugging Face folder."""
    dataset: str | Path
    """A folder or a URL."""
    output: str | Path
    """A folder or a URL."""
    settings: ScoreSettings
    _: KW_ONLY
    column: str = REF_LOSS
    """The column that its losses go to: `ref_loss`, which makes a dataset of kind scored, or one of another name beside
    what the dataset has."""
    run: RunStep | None = None
    """The checkpoint that `reference` was made of, if it was named as a run."""
    working: Path | None = None
    """For an output at a URL: a local folder, shared by all ranks, for parts before they are sent."""
    cache: Path = Path("~/.cache/megaslm")
    """For a dataset at a URL: the folder on each host that keeps fetched files."""
