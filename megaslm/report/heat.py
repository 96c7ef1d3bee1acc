"""The probe rows of a run in the document: their text, and the losses of each token at some of the measured steps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megaslm.config.selection import SlmSection
from megaslm.observe.display import counted
from megaslm.observe.probe_files import ProbeRows, read_measurement
from megaslm.report.curves import Entry
from megaslm.report.packed import packed, packed_bits, spread
from megaslm.report.probe import Probe

CHECKPOINTS = (48, 24, 12, 6, 3, 2)
"""Most measured steps: as many as leave room for all rows; else 12, or fewer where not even one row has room."""
_PREFERRED = 12
_TEXT_BYTES = 12
"""Of a target in the page, about: its text as JSON, and what says whether it is valid and kept."""
_BASE64 = 4 / 3


def heat_entry(probe: Probe, most_bytes: int) -> Entry:
    """The rows and losses of a run in about `most_bytes` of the page: as many rows and measured steps as fit.

    Raises DataError where a file is corrupt.
    """
    rows = probe.rows
    most_steps = most_checkpoints(rows, len(probe.steps), most_bytes)
    steps = [probe.steps[place] for place in spread(len(probe.steps), most_steps)]
    shown = rows_shown(rows, max(1, most_rows(rows, len(steps), most_bytes)))
    found = [read_measurement(probe.folder, step, rows) for step in steps]
    last, slm = found[-1], probe.run.config.slm
    selects = probe.run.is_selective
    ranks_by_loss = rows.ref_loss is None
    criterion = "mask" if rows.selected is not None else _ranking(slm)
    return {
        "run": probe.run.name,
        "domains": list(rows.domains),
        "probe_rows": len(rows.tokens),
        "note": _note(len(shown), len(rows.tokens), len(steps), len(probe.steps)),
        "rows": [_row(probe, row) for row in shown],
        "ref_loss": None if rows.ref_loss is None else packed(rows.ref_loss[shown], "f2"),
        "checkpoints": [
            {
                "step": one.step,
                "tokens": one.tokens_seen,
                # The page sorts by the losses of the last step as the run does, so they are exact.
                "loss": packed(one.losses[shown], "f4" if one is last else "f2"),
                "kept": None if one.kept is None else packed_bits(one.kept[shown]),
            }
            for one in found
        ],
        "keep_ratio": None if last.keep_ratio is None else float(last.keep_ratio),
        "criterion": criterion if selects else ("loss" if ranks_by_loss else "excess"),
        "higher_is_kept": not selects or slm.criterion in ("excess", "loss"),
        "scope": "sequence" if selects and slm.scope == "sequence" else "batch",
        "span_reach": _span_reach(slm, rows.valid.shape[1]) if selects else None,
        "max_ref_loss": slm.max_ref_loss if selects else None,
        "kept_by_run": None if last.kept is None else packed_bits(last.kept[shown]),
    }


def _ranking(slm: SlmSection) -> str:
    """The criterion, with what keeps the page from ranking by it: another policy than the top, domains apart."""
    within = " within domains" if slm.keep_ratio_of_domains else ""
    return f"{slm.criterion}{within}" if slm.policy == "top" else f"{slm.criterion}{within} under policy {slm.policy}"


def _span_reach(slm: SlmSection, seq_len: int) -> int | None:
    """Targets on each side of a target whose mean value it is sorted by; None where each is sorted by its own value."""
    return {"token": None, "span": slm.span_reach, "document": seq_len}[slm.granularity]


def most_checkpoints(rows: ProbeRows, measured: int, most_bytes: int) -> int:
    """The number of measured steps to show, one of `CHECKPOINTS`."""
    for count in CHECKPOINTS:
        room = most_rows(rows, min(count, measured), most_bytes)
        if room >= len(rows.tokens) or (count <= _PREFERRED and room >= 1):
            return count
    return CHECKPOINTS[-1]


def most_rows(rows: ProbeRows, checkpoints: int, most_bytes: int) -> int:
    """The number of rows whose losses and text take at most about `most_bytes`."""
    # float16, with the last step as float32.
    losses_bytes = 2 * checkpoints + 2 + (0 if rows.ref_loss is None else 2)
    target_bytes = losses_bytes * _BASE64 + _TEXT_BYTES
    return int(most_bytes / (target_bytes * rows.valid.shape[1]))


def rows_shown(rows: ProbeRows, most: int) -> NDArray[np.int64]:
    """At most so many of the rows, rising: as many of each domain as far as it has them, spread evenly over it."""
    if most >= len(rows.tokens):
        return np.arange(len(rows.tokens))
    of_domains = [np.flatnonzero(rows.domain == number) for number in range(len(rows.domains))]
    shares = _shares([len(domain) for domain in of_domains], most)
    chosen = [domain[spread(len(domain), share)] for domain, share in zip(of_domains, shares, strict=True) if share]
    return np.sort(np.concatenate(chosen))


def _shares(sizes: Sequence[int], most: int) -> list[int]:
    """`most` divided over domains of these sizes, one after the other."""
    shares = [0] * len(sizes)
    for _ in range(most):
        open_ones = [number for number, size in enumerate(sizes) if shares[number] < size]
        shares[min(open_ones, key=lambda number: shares[number])] += 1
    return shares


def _row(probe: Probe, row: int) -> Entry:
    rows, texts = probe.rows, probe.texts[row]
    # A row may be padded with EOS, where no document begins.
    ends = rows.tokens[row] == rows.eos_id
    return {
        "domain": int(rows.domain[row]),
        "row": int(rows.row[row]),
        "first": texts[0],
        "pieces": texts[1:],
        "valid": packed_bits(rows.valid[row]),
        "new_document": np.flatnonzero(ends[:-1] & ~ends[1:]).tolist(),
    }


def _note(rows: int, all_rows: int, steps: int, all_steps: int) -> str | None:
    if (rows, steps) == (all_rows, all_steps):
        return None
    return (
        f"{rows:,} of {counted(all_rows, 'probe row')} and {steps:,} of {counted(all_steps, 'measurement')} are shown, "
        "evenly spread, so that the page stays small."
    )
