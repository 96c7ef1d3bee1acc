"""What a run says about itself, as plain values, and metrics.jsonl that keeps them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """Counted from 1."""
    tokens: int
    """Targets read so far, over all ranks."""
    loss: float
    """Mean loss of the selected targets, in nats: what was trained on."""
    all_loss: float | None
    """Mean loss of all valid targets, in nats; null where `slm.measure_unselected` is off."""
    selected_ratio: float
    """Selected targets by valid ones."""
    learning_rate: float
    gradient_norm: float
    """Global norm before clipping."""
    tokens_per_second: float
    """Over the steps since the last report, all ranks together."""
    threshold: float | None = None
    """Score from which targets were selected; of rows or micro-batches with cuts of their own the mean. Null where all
    were selected, or there were none."""
    excess_quantiles: dict[str, float] = field(default_factory=dict)
    """Excess loss in nats at 5, 25, 50, 75 and 95% of all valid targets."""
    domain_ratio: dict[str, float] = field(default_factory=dict)
    """Selected targets by valid ones, in each domain."""
    domain_tokens: dict[str, int] = field(default_factory=dict)
    """Targets read so far of each domain, over all ranks."""
    domain_passes: dict[str, float] = field(default_factory=dict)
    """How often each domain's rows were read so far, on average."""


@dataclass(frozen=True)
class ValidationRecord:
    """Losses on one domain of one held-out set; the domain `all` joins the set's domains."""

    step: int
    tokens: int
    name: str
    domain: str
    loss: float
    """Mean loss of all valid targets, in nats."""
    perplexity: float
    targets: int
    """Valid targets measured."""


Record = StepRecord | ValidationRecord


class MetricsFile:
    """metrics.jsonl: one JSON object a line, `kind` "step" or "validation"."""

    def __init__(self, path: Path, *, last_step: int) -> None:
        """Opens the file to append; lines of steps after `last_step`, from a run that was cut off, are taken out."""
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if last_step and _step_of(line) <= last_step]
            path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: list[Record]) -> None:
        """Appends and flushes."""
        for record in records:
            kind = "step" if isinstance(record, StepRecord) else "validation"
            self._file.write(json.dumps({"kind": kind, **asdict(record)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_validations(path: Path) -> list[ValidationRecord]:
    """The validation records of a metrics.jsonl, in order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        ValidationRecord(**{key: value for key, value in line.items() if key != "kind"})
        for line in lines
        if line["kind"] == "validation"
    ]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # A line that a killed process left half written.
