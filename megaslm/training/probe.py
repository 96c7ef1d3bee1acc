"""Measures a run's probe rows while it trains: the loss of every token, in one file per measurement."""

import math
from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megaslm.config.run_files import PROBE, measurement_file
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import TOKENIZER
from megaslm.engine.distributed import World, all_gather, on_first_rank
from megaslm.engine.zero import ZeroEngine
from megaslm.errors import DataError
from megaslm.observe.probe_files import (
    Measurement,
    ProbeRows,
    forget_after,
    measured_steps,
    read_measurement,
    write_measurement,
)
from megaslm.observe.records import ProbeRecord, Sample
from megaslm.slm.measure import Measure, Measured
from megaslm.tokenizer.token_text import texts_of_row
from megaslm.tokenizer.tokenizer import load_tokenizer
from megaslm.training.probe_rows import keep_or_choose_rows
from megaslm.training.probe_selection import ratio_at, would_keep
from megaslm.training.selection_rule import sorts_by_entropy
from megaslm.training.training_data import TrainingData

_BATCHES_BETWEEN_QUESTIONS = 8
_SAMPLES = 2
_SAMPLE_TOKENS = 256


class Probe:
    """The probe rows of a run, or none. Every method is called on all ranks."""

    def __init__(self, config: RunConfig, world: World, data: TrainingData) -> None:
        """Chooses the rows on the first start of the run, and reads them again on later ones.

        Raises ConfigError or DataError as `keep_or_choose_rows` does.
        """
        self._config, self._world = config, world
        self._folder = Path(config.run_dir) / PROBE
        self._tokenizer = data.first.source.path / TOKENIZER
        self._rows: ProbeRows | None = None
        self._reports: ProbeReport | None = None
        if config.probe.every_tokens is not None:
            self._rows = on_first_rank(lambda: keep_or_choose_rows(self._folder, config, data))

    def start_after(self, step: int) -> None:
        """Removes the measurements of later steps, which the run makes again. Kept also where `probe` is off now."""
        on_first_rank(lambda: forget_after(self._folder, step))

    def measure(
        self,
        engine: ZeroEngine,
        *,
        step: int,
        tokens: int,
        is_to_stop: Callable[[], bool],
        say: Callable[[str], None],
        tell: Callable[[ProbeRecord], None],
        tells_again: bool = False,
    ) -> bool:
        """Measures the rows after a step, unless that was done, and writes the file on the first rank.

        All ranks run equally many batches. `is_to_stop` is called before every eighth one and gives all ranks the same
        answer. A file that cannot be written is told through `say`; training continues. On the first rank `tell` gets
        what is reported of the measurement; with `tells_again` also of one that was made before.

        Returns:
            Whether the measurement was not stopped.
        """
        rows = self._rows
        if rows is None:
            return True
        if on_first_rank(lambda: measurement_file(self._folder, step).is_file()):
            if tells_again and self._world.is_first:
                self._report(rows, read_measurement(self._folder, step, rows), say, tell)
            return True
        measured = self._measured(engine, rows, is_to_stop)
        if measured is None:
            return False
        if self._world.is_first:
            measurement = measurement_of(self._config, rows, *measured, step=step, tokens=tokens)
            self._report(rows, measurement, say, tell)
            try:
                write_measurement(self._folder, measurement)
            except OSError as error:
                say(
                    f"warning: {measurement_file(self._folder, step)}: cannot be written ({error}); training "
                    "continues; `megaslm dynamics --checkpoints` measures the steps that have a checkpoint"
                )
        return True

    def _report(
        self,
        rows: ProbeRows,
        measurement: Measurement,
        say: Callable[[str], None],
        tell: Callable[[ProbeRecord], None],
    ) -> None:
        if self._reports is None:
            self._reports = ProbeReport(self._folder, rows, self._tokenizer)
        record = self._reports.record(measurement, say)
        if record is not None:
            tell(record)

    def _measured(
        self, engine: ZeroEngine, rows: ProbeRows, is_to_stop: Callable[[], bool]
    ) -> tuple[NDArray[np.float32], ...] | None:
        """The losses of the rows, and the entropies if they rank the run's targets; None where it was stopped."""
        world, count = self._world, len(rows.tokens)
        # Ranks need equally many rows, or ZeRO-3 would wait for ever. Padding repeats the last row.
        per_rank = math.ceil(count / world.size)
        mine = np.minimum(np.arange(world.rank * per_rank, (world.rank + 1) * per_rank), count - 1)
        measured: list[Measured] = []
        with engine.evaluating():
            batches = torch.from_numpy(rows.tokens[mine].astype(np.int64)).split(self._config.validation.batch_rows)
            for number, tokens in enumerate(batches):
                if number % _BATCHES_BETWEEN_QUESTIONS == 0 and is_to_stop():
                    return None
                what = Measure(entropies=sorts_by_entropy(self._config))
                measured.append(engine.measure(tokens.to(world.device), what=what))
        columns = Measured.joined(measured).columns
        return tuple(all_gather(column).flatten(0, 1)[:count].cpu().numpy() for column in columns)


def measurement_of(
    config: RunConfig,
    rows: ProbeRows,
    losses: NDArray[np.float32],
    entropies: NDArray[np.float32] | None = None,
    *,
    step: int,
    tokens: int,
) -> Measurement:
    """The measurement of (R, L) losses, with what the run's selection keeps by them, or by entropies."""
    losses = np.where(rows.valid, losses, np.float32(0))
    return Measurement(
        step=step,
        tokens_seen=tokens,
        rows_sha256=rows.sha256,
        losses=losses,
        keep_ratio=ratio_at(config, tokens),
        kept=would_keep(config, rows, losses, entropies, step=step, tokens_seen=tokens),
    )


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
