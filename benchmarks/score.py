"""Scoring on one CPU thread: time and memory against a plain loop over `transformers` and `cross_entropy`.

The plain loop is what one writes without MegaSLM, and writes well: the same model, weights, rows, batches and float32,
attention by torch's fused kernel, no cache of keys and values, under inference mode; but for each batch all logits, and
one `cross_entropy` of them. It knows nothing of documents, so that ours is held against it with isolation off; what
isolation costs stands beside it. A row at a time it takes less memory, at the price that the table shows.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from harness.corpora import corpus_name
from harness.memory import forget_peak, peak_bytes
from harness.references import drawn_model, first_rows, llama, prepare_text
from harness.report import Bar, options, report
from harness.timing import in_turns
from torch import Tensor

from megaslm.config.schema import Architecture
from megaslm.dataset.manifest import read_manifest
from megaslm.model.selective_lm import CausalLM, SelectiveLM

PLAIN, PLAIN_BY_ROW = "plain loop", "plain loop, a row at a time"
OURS, OURS_ISOLATED = "ours", "ours, documents isolated"
WAYS = (PLAIN, PLAIN_BY_ROW, OURS, OURS_ISOLATED)
LARGEST_DIFFERENCE = 1e-4
TEXT_BYTES = 200_000


@dataclass(frozen=True)
class Size:
    """A batch of rows and the model that reads it."""

    rows: int
    seq_len: int
    architecture: Architecture


FULL = (Size(8, 512, llama(32_000, 512, 6)), Size(2, 2048, llama(32_000, 512, 6)))
QUICK = (Size(2, 64, llama(1_500, 128, 2)),)


def plain_losses(lm: CausalLM, tokens: Tensor) -> Tensor:
    """(B, L) float32 losses of (B, L+1) tokens."""
    with torch.inference_mode():
        logits = lm(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)


def plain_losses_by_row(lm: CausalLM, tokens: Tensor) -> Tensor:
    return torch.cat([plain_losses(lm, row) for row in tokens.split(1)])


def scorer(name: str, size: Size, eos_id: int) -> Callable[[Tensor], Tensor]:
    """One way to score, with a model of its own: ours takes over the model's head."""
    lm = drawn_model(size.architecture, eos_id)
    if name == PLAIN:
        return partial(plain_losses, lm)
    if name == PLAIN_BY_ROW:
        return partial(plain_losses_by_row, lm)
    model = SelectiveLM(lm, eos_id=eos_id, document_isolation=name == OURS_ISOLATED)
    return lambda tokens: model.measure(tokens).losses


def memory_task(size: Size, dataset: Path, name: str) -> None:
    """Runs in a process of its own, which holds the model and the rows before anything counts."""
    torch.set_num_threads(1)
    score = scorer(OURS if name == "nothing" else name, size, read_manifest(dataset).eos_id)
    tokens = first_rows(dataset, size.rows)
    forget_peak()
    if name != "nothing":
        score(tokens)


def measure(size: Size, dataset: Path, *, quick: bool) -> tuple[list[dict[str, str | float]], list[Bar]]:
    eos_id = read_manifest(dataset).eos_id
    tokens = first_rows(dataset, size.rows)
    scorers = {name: scorer(name, size, eos_id) for name in WAYS}
    if (scorers[OURS](tokens) - scorers[PLAIN](tokens)).abs().max() > LARGEST_DIFFERENCE:
        raise SystemExit("ours and the plain loop give different losses: nothing was measured")
    times = in_turns(
        {name: partial(score, tokens) for name, score in scorers.items()},
        repetitions=3 if quick else 7,
        clock=time.process_time,
    )
    peaks = {} if quick else {name: peak_bytes(partial(memory_task, size, dataset), name, 1) for name in WAYS}
    batch = f"{size.rows} × {size.seq_len}"
    rows: list[dict[str, str | float]] = [
        {
            "scoring": f"{name}, {batch}",
            "tokens/s": tokens[:, 1:].numel() / taken.median,
            "time, to plain": taken.over(times[PLAIN]),
            "from – to": taken.spread(times[PLAIN]),
            "peak MB": peaks[name] / 1e6 if peaks else "",
            "peak, to plain": peaks[name] / peaks[PLAIN] if peaks else "",
        }
        for name, taken in times.items()
    ]
    bars = [Bar(f"time, to the plain loop, {batch}", times[OURS].over(times[PLAIN]), 0.95)]
    if peaks:
        bars.append(Bar(f"peak memory, to the plain loop, {batch}", peaks[OURS] / peaks[PLAIN], 0.3))
    return rows, bars


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    sizes = QUICK if chosen.quick else FULL
    shape = sizes[0].architecture
    rows: list[dict[str, str | float]] = []
    bars: list[Bar] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            dataset = prepare_text(Path(folder), TEXT_BYTES, vocab_size=shape.vocab_size, seq_len=size.seq_len)
            more_rows, more_bars = measure(size, dataset, quick=chosen.quick)
        rows += more_rows
        bars += more_bars
    report(
        f"How long does scoring take on one CPU thread, and how much memory beyond the model's? {corpus_name()}, llama "
        f"of {shape.num_layers} layers, width {shape.hidden_size}, V={shape.vocab_size}, fp32, processor time",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
