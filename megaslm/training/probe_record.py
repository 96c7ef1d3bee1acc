"""What a run reports of a measurement of its probe rows: how its selection has changed, and samples of it."""

from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaslm.errors import DataError
from megaslm.observe.probe_files import Measurement, ProbeRows, measured_steps, read_measurement
from megaslm.observe.records import ProbeRecord, Sample
from megaslm.tokenizer.token_text import texts_of_row
from megaslm.tokenizer.tokenizer import load_tokenizer

_SAMPLES = 2
_SAMPLE_TOKENS = 256


class ProbeReport:
    """Turns measurements of a run's probe rows into records."""

    def __init__(self, folder: Path, rows: ProbeRows, tokenizer: Path) -> None:
        """`folder` holds the measurements, `tokenizer` is the folder of the rows' tokenizer."""
        self._folder, self._rows, self._tokenizer = folder, rows, tokenizer

    def record(self, measurement: Measurement, say: Callable[[str], None]) -> ProbeRecord | None:
        """The record of a measurement. None where the run trains on all targets.

        Where the file of the measurement before is corrupt, `say` gets a warning and the record has no churn.
        """
        if measurement.kept is None:
            return None
        samples = [self._sample(row, texts, measurement.kept[row]) for row, texts in self._texts.items()]
        churn = None
        try:
            churn = self._churn(measurement.step, measurement.kept)
        except DataError as error:
            say(f"warning: {error}; training continues, and step {measurement.step} has no churn")
        return ProbeRecord(measurement.step, measurement.tokens_seen, churn, samples)

    def _churn(self, step: int, kept: NDArray[np.bool_]) -> float | None:
        earlier = [other for other in measured_steps(self._folder) if other < step]
        before = read_measurement(self._folder, earlier[-1], self._rows).kept if earlier else None
        return None if before is None or not kept.any() else float(1 - before[kept].mean())

    @cached_property
    def _texts(self) -> dict[int, list[str]]:
        """The texts of the first tokens of some rows, spread over all probe rows."""
        count = len(self._rows.tokens)
        tokenizer = load_tokenizer(self._tokenizer)
        return {
            row: list(texts_of_row(tokenizer, self._rows.tokens[row, :_SAMPLE_TOKENS].tolist(), self._rows.eos_id))
            for row in sorted({place * count // _SAMPLES for place in range(_SAMPLES)})
        }

    def _sample(self, row: int, texts: list[str], kept: NDArray[np.bool_]) -> Sample:
        # The first token of a row is no target.
        marks = [False, *kept[: len(texts) - 1].tolist()]
        stretches = [
            "".join(text for text, _ in group)
            for _, group in groupby(zip(texts, marks, strict=True), key=lambda pair: pair[1])
        ]
        domain = self._rows.domains[self._rows.domain[row]]
        return Sample(domain=domain, row=int(self._rows.row[row]), stretches=stretches)
