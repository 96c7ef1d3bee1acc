"""Folders of probe rows and their losses, without a run."""

from pathlib import Path

import numpy as np

from megaslm.observe.probe_files import Measurement, ProbeRows, write_measurement, write_rows
from tests.toy import EOS_ID


def probe_rows(
    rows: int = 2, seq_len: int = 8, *, scored: bool = False, domains: tuple[str, ...] = ("a",)
) -> ProbeRows:
    """Rows of tokens 3, 4, 5 … without an EOS."""
    tokens = np.arange(3, 3 + rows * (seq_len + 1), dtype=np.int32).reshape(rows, seq_len + 1)
    return ProbeRows(
        tokens=tokens,
        valid=np.ones((rows, seq_len), bool),
        domain=(np.arange(rows) % len(domains)).astype(np.int32),
        row=np.arange(rows, dtype=np.int64),
        domains=domains,
        eos_id=EOS_ID,
        description="these rows",
        ref_loss=np.full((rows, seq_len), 1.5, np.float16) if scored else None,
    )


def write_probe(folder: Path, rows: ProbeRows, losses: np.ndarray, *, kept: np.ndarray | None = None) -> None:
    """Writes (n, R, L) losses of n measurements, ten steps and 1,000 tokens apart."""
    write_rows(folder, rows)
    for number, of_step in enumerate(losses):
        write_measurement(
            folder,
            Measurement(
                step=10 * number,
                tokens_seen=1000 * number,
                rows_sha256=rows.sha256,
                losses=of_step.astype(np.float32),
                keep_ratio=None if kept is None else "0.5",
                kept=None if kept is None else kept[number],
            ),
        )
