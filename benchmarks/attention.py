"""Attention within documents on a CPU: by document, against the explicit mask that it replaces.

Both ways have the same model, weights and rows and run in turns. Rows are random tokens; the lengths of documents are
drawn around a mean, as text has them. Scoring is the forward pass with its losses; a training step is the forward and
the backward pass over all targets. Beside them stands the pass that does not isolate documents. Peak memory is what a
fresh process adds to its model and rows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from harness.masked_attention import MaskedLM
from harness.memory import forget_peak, peak_bytes
from harness.references import drawn_model, llama
from harness.report import Bar, options, report
from harness.timing import in_turns
from torch import Tensor

from megaslm.config.schema import Architecture
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Every, HeadOutput

EOS_ID = 2
OURS, MASKED, WHOLE = "by document", "by a mask", "not isolated"
WAYS = (OURS, MASKED, WHOLE)
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What is run over which rows. `limits`: the most of the masked pass's time and memory, and of the whole pass's."""

    kind: Literal["scoring", "training step"]
    rows: int
    seq_len: int
    document_tokens: int
    architecture: Architecture
    time_limit: float
    to_whole_limit: float | None = None
    memory_limit: float | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.rows} × {self.seq_len}, documents of {self.document_tokens}"

    def tokens(self) -> Tensor:
        """(rows, L+1) int64, documents of random lengths, exponentially distributed."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.rows, self.seq_len + 1)
        tokens = torch.randint(EOS_ID + 1, self.architecture.vocab_size, shape, generator=generator)
        return tokens.where(torch.rand(shape, generator=generator) >= 1 / self.document_tokens, EOS_ID)


LLAMA = llama(32_000, 512, 6)
SMALL = llama(1_500, 128, 2)
FULL = (
    Case("scoring", 2, 2048, 600, LLAMA, time_limit=0.65, to_whole_limit=0.8, memory_limit=0.7),
    Case("scoring", 8, 512, 128, LLAMA, time_limit=0.85),
    Case("scoring", 8, 512, 16, LLAMA, time_limit=1.0),
    Case("training step", 4, 2048, 600, LLAMA, time_limit=0.65, memory_limit=0.7),
)
QUICK = (
    Case("scoring", 2, 64, 20, SMALL, time_limit=1.0),
    Case("training step", 2, 64, 20, SMALL, time_limit=1.0),
)


def pass_over(case: Case, way: str) -> Callable[[], Tensor]:
    """One way to run the case, with a model of its own; a call returns the losses."""
    kind = MaskedLM if way == MASKED else SelectiveLM
    model = kind(drawn_model(case.architecture, EOS_ID), eos_id=EOS_ID, document_isolation=way != WHOLE)
    tokens = case.tokens()
    if case.kind == "scoring":
        return lambda: model.measure(tokens).losses
    return partial(train, model.train(), tokens)


def train(model: SelectiveLM, tokens: Tensor) -> Tensor:
    output = cast(HeadOutput, model(tokens, Every(torch.ones(tokens[:, 1:].numel(), dtype=torch.bool))))
    output.total.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return output.losses


def memory_task(case: Case, way: str) -> None:
    """Runs in a process of its own, which holds the model and the rows before anything counts."""
    torch.set_num_threads(1)
    run = pass_over(case, OURS if way == "nothing" else way)
    forget_peak()
    if way != "nothing":
        run()


def measure(case: Case, *, quick: bool) -> tuple[list[dict[str, str | float]], list[Bar]]:
    passes = {way: pass_over(case, way) for way in WAYS}
    difference = float((passes[OURS]() - passes[MASKED]()).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise SystemExit(f"{case.name}: losses differ by up to {difference} nats: nothing was measured")
    times = in_turns(passes, repetitions=3 if quick else 7, clock=time.process_time)
    has_memory = case.memory_limit is not None
    peaks = {way: peak_bytes(partial(memory_task, case), way, 1) for way in WAYS} if has_memory else {}
    rows: list[dict[str, str | float]] = [
        {
            "attention": f"{case.name}, {way}",
            "tokens/s": case.rows * case.seq_len / taken.median,
            "time, to the mask": taken.over(times[MASKED]),
            "from – to": taken.spread(times[MASKED]),
            "peak MB": peaks[way] / 1e6 if peaks else "",
            "peak, to the mask": peaks[way] / peaks[MASKED] if peaks else "",
            "largest difference, nats": difference if way == OURS else "",
        }
        for way, taken in times.items()
    ]
    bars = [Bar(f"{case.name}: time, to the mask", times[OURS].over(times[MASKED]), case.time_limit)]
    if case.to_whole_limit is not None:
        bars.append(Bar(f"{case.name}: time, to not isolated", times[OURS].over(times[WHOLE]), case.to_whole_limit))
    if case.memory_limit is not None:
        bars.append(Bar(f"{case.name}: peak memory, to the mask", peaks[OURS] / peaks[MASKED], case.memory_limit))
    return rows, bars


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    cases = QUICK if chosen.quick else FULL
    rows: list[dict[str, str | float]] = []
    bars: list[Bar] = []
    for case in cases:
        more_rows, more_bars = measure(case, quick=chosen.quick)
        rows += more_rows
        bars += more_bars
    shape = cases[0].architecture
    report(
        "What does attention within documents cost without a mask? One CPU thread, llama of "
        f"{shape.num_layers} layers, width {shape.hidden_size}, V={shape.vocab_size}, fp32, processor time",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
