"""Losses read in windows against those with the whole row as context: plain windows, and windows that overlap.

A model that is trained here for a minute or two, on rows of 512, scores held-out rows of 512: whole, which is the
truth; in plain windows, side by side, whose first targets have next to no context; and in windows that overlap, where
a target is taken from the first window that holds it. Overlap is held against its price: the difference to the truth
has to fall by more than the operations rise.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from harness.corpora import corpus_name
from harness.references import first_rows, prepare_text
from harness.report import Bar, options, report
from harness.timing import in_turns
from harness.training import train
from torch import Tensor

from megaslm.dataset.manifest import Reference, read_manifest
from megaslm.model.folder import check_model_folder
from megaslm.model.forward_flops import forward_flops_per_token
from megaslm.model.reference_model import ReferenceModel, windows_of
from megaslm.slm.valid_targets import valid_targets

SEQ_LEN, BATCH_ROWS = 512, 16
WINDOWS = (128, 256)
OVERLAPS = {"plain": 1, "half": 2, "three quarters": 4}
"""Name to window / stride."""


class Scorer:
    """One model, read in any windows."""

    def __init__(self, reference: Path, eos_id: int) -> None:
        self.config = check_model_folder(reference)
        self._reference = reference
        self._eos_id = eos_id

    def reading(self, window: int, stride: int) -> ReferenceModel:
        record = Reference(
            weights_sha256="",
            name="",
            precision="fp32",
            document_isolation=True,
            window=window,
            stride=stride,
            batch_rows=BATCH_ROWS,
            dataset_sha256="",
        )
        return ReferenceModel.load(self._reference, record, eos_id=self._eos_id, device=torch.device("cpu"))

    def operations(self, window: int, stride: int) -> float:
        """Floating-point operations of a row."""
        read_tokens = sum(stop - start for start, stop, _ in windows_of(SEQ_LEN, window, stride))
        return read_tokens * forward_flops_per_token(self.config, window)


def losses_of(model: ReferenceModel, rows: Tensor) -> Tensor:
    return torch.cat([model.measure(batch).losses for batch in rows.split(BATCH_ROWS)])


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text_bytes = 400_000 if chosen.quick else 4_000_000
        dataset = prepare_text(folder, text_bytes, vocab_size=2048, seq_len=SEQ_LEN, heldout_fraction=0.1)
        eos_id = read_manifest(dataset).eos_id
        rows = first_rows(dataset, 4 if chosen.quick else 4 * BATCH_ROWS, "heldout")
        total_tokens = 8192 if chosen.quick else 819_200
        model = train(folder, dataset, vocab_size=2048, seq_len=SEQ_LEN, batch_rows=4, total_tokens=total_tokens)
        scorer = Scorer(model, eos_id)
        readings = {(SEQ_LEN, SEQ_LEN): "whole rows"}
        for window in WINDOWS:
            readings |= {(window, window // factor): name for name, factor in OVERLAPS.items()}
        models = {reading: scorer.reading(*reading) for reading in readings}
    valid = valid_targets(rows, eos_id)
    times = in_turns(
        {str(reading): partial(losses_of, model, rows[:BATCH_ROWS]) for reading, model in models.items()},
        repetitions=1 if chosen.quick else 5,
        clock=time.process_time,
    )
    losses = {reading: losses_of(model, rows)[valid] for reading, model in models.items()}
    whole = (SEQ_LEN, SEQ_LEN)
    apart = {reading: (found - losses[whole]).abs() for reading, found in losses.items()}
    table = [
        {
            "window": window,
            "stride": stride,
            "overlap": name,
            "mean |difference|": float(apart[window, stride].mean()),
            "median": float(apart[window, stride].median()),
            "to plain": float(apart[window, stride].mean() / apart[window, window].mean()) if window < SEQ_LEN else "",
            "mean loss": float(losses[window, stride].mean()),
            "operations, to whole": scorer.operations(window, stride) / scorer.operations(*whole),
            "time, to whole": times[str((window, stride))].over(times[str(whole)]),
        }
        for (window, stride), name in readings.items()
    ]
    bars = [
        Bar(
            f"mean |difference| of half-overlapping windows of {window}, to plain ones",
            float(apart[window, window // 2].mean() / apart[window, window].mean()),
            scorer.operations(window, window) / scorer.operations(window, window // 2),
        )
        for window in WINDOWS
    ]
    report(
        f"How near do losses in windows come to those with a row of {SEQ_LEN} as context? {int(valid.sum())} held-out "
        f"targets of {corpus_name()}, in nats, a model of 1M parameters; processor time",
        table,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
