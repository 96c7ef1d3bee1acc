"""What each kind of recomputation saves and costs: a forward and a backward pass of a trunk on one CPU thread."""

import time
from collections.abc import Callable
from functools import partial

import torch
from harness.memory import forget_peak, peak_bytes
from harness.references import drawn_model, llama
from harness.report import Bar, options, report
from harness.timing import in_turns

from megaslm.config.schema import Architecture, Recompute
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Every

WAYS: tuple[Recompute, ...] = ("none", "selective", "full")
EOS_ID = 2


def step_of(architecture: Architecture, rows: int, seq_len: int, recompute: Recompute) -> Callable[[], None]:
    """One forward and backward pass over rows without documents."""
    lm = drawn_model(architecture, EOS_ID).train()
    prepare_layers(lm, recompute=recompute, compiled=False)
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=False)
    tokens = torch.randint(3, architecture.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))
    every = Every(torch.ones(rows * seq_len, dtype=torch.bool))

    def step() -> None:
        output = model(tokens, every)
        assert not isinstance(output, torch.Tensor)
        output.total.backward()

    step()
    return step


def memory_task(architecture: Architecture, rows: int, seq_len: int, name: str) -> None:
    """Runs in a process of its own. The gradients are there before anything counts."""
    torch.set_num_threads(1)
    way: Recompute = next((way for way in WAYS if way == name), "full")
    # A first pass over one row makes the gradients.
    step = step_of(architecture, 1 if name == "nothing" else rows, seq_len, way)
    forget_peak()
    step()


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    architecture, rows, seq_len = (llama(500, 128, 2), 16, 256) if chosen.quick else (llama(500, 512, 4), 4, 256)
    steps: dict[str, Callable[[], object]] = {way: step_of(architecture, rows, seq_len, way) for way in WAYS}
    times = in_turns(steps, repetitions=3 if chosen.quick else 5, clock=time.process_time)
    task = partial(memory_task, architecture, rows, seq_len)
    memory = {way: peak_bytes(task, way, repetitions=1) for way in WAYS}
    report(
        f"What do kinds of recomputation save and cost? {rows} rows of {seq_len} tokens, {architecture.num_layers} "
        f"layers of width {architecture.hidden_size}, float32, one CPU thread; memory above that of one row with full",
        [
            {
                "model.recompute": way,
                "peak MiB": memory[way] / (1 << 20),
                "memory to none": memory[way] / memory["none"],
                "time to none": times[way].over(times["none"]),
                "from – to": times[way].spread(times["none"]),
            }
            for way in WAYS
        ],
        [
            Bar("memory of selective to none", memory["selective"] / memory["none"], 0.75),
            Bar("memory of full to none", memory["full"] / memory["none"], 0.5),
            Bar("time of selective to full", times["selective"].over(times["full"]), 1.0),
            Bar("time of full to none", times["full"].over(times["none"]), 1.35),
        ],
        chosen,
    )


if __name__ == "__main__":
    main()
