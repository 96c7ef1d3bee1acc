"""Scoring on a GPU in bf16: its share of the peak, by ways to attend; without a GPU only --quick runs, on the CPU.

Random weights of two shapes, rows of random tokens with documents of 600 tokens on average; what is timed is the
forward pass with its losses, rows lying on the device. The share is model FLOP/s (megaslm/model/flops.py, which counts
causal attention over the whole row) by what the device's maker states. Differences are to the losses by the mask.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from harness.gpu import DEVICE, clock, peak_gib
from harness.masked_attention import MaskedLM
from harness.report import Bar, options, report
from harness.timing import in_turns
from torch import Tensor

from megaslm.config.load import load
from megaslm.config.schema import Architecture, RunConfig
from megaslm.model.attention import flash
from megaslm.model.flops import device_name, forward_flops_per_token, peak_flops
from megaslm.model.load import build_from_shape
from megaslm.model.selective_lm import CausalLM, SelectiveLM

ROOT = Path(__file__).parents[1]
EOS_ID = 2
DOCUMENT_TOKENS = 600
LEAST_MFU = 0.55
MASKED, CAUSAL, OURS = "documents isolated by a mask", "not isolated", "documents isolated"
NOMINAL_PEAK = 1e12
"""For devices whose peak is not known, CPUs among them."""


@dataclass(frozen=True)
class Case:
    name: str
    architecture: Architecture
    seq_len: int
    rows: int


def full_cases() -> list[Case]:
    return [case_of("tinyllama-1b", rows=16), case_of("mistral-7b", rows=8)]


def case_of(name: str, rows: int) -> Case:
    config = load(RunConfig, ROOT / "configs" / "shapes" / f"{name}.yaml").value
    assert config.model.from_scratch is not None
    return Case(name, config.model.from_scratch, config.data.seq_len, rows)


def quick_cases() -> list[Case]:
    small = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4}
    return [Case("a small llama", Architecture.model_validate(small), 128, 2)]


def drawn_on_device(case: Case) -> CausalLM:
    """Random weights, drawn where they are to be: billions of them take minutes on a host."""
    with torch.device(DEVICE):
        lm = build_from_shape(case.architecture, eos_id=EOS_ID, dtype=torch.bfloat16)
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, case.architecture.initializer_range, generator=generator)
            else:
                parameter.fill_(1.0)
    return lm.eval()


def sharing_weights(lm: CausalLM) -> CausalLM:
    """A copy with modules of its own, which may attend otherwise, over the same weights."""
    kept = {id(tensor): tensor for tensor in itertools.chain(lm.parameters(), lm.buffers())}
    return copy.deepcopy(lm, kept)


def compiled(model: SelectiveLM) -> SelectiveLM:
    for layer in model.lm.model.layers:
        layer.compile(dynamic=False)
    return model


def ways_to_score(lm: CausalLM) -> dict[str, SelectiveLM]:
    """Compiled layers are measured on a GPU only: a CPU machine may have no compiler."""

    def way(*, masked: bool = False, isolated: bool = True) -> SelectiveLM:
        kind = MaskedLM if masked else SelectiveLM
        return kind(sharing_weights(lm), eos_id=EOS_ID, document_isolation=isolated)

    ways = {MASKED: way(masked=True), CAUSAL: way(isolated=False), OURS: way()}
    if DEVICE.type == "cuda":
        ways |= {
            f"{MASKED}, layers compiled": compiled(way(masked=True)),
            f"{CAUSAL}, layers compiled": compiled(way(isolated=False)),
            f"{OURS}, layers compiled": compiled(way()),
        }
    return ways


def rows_of(case: Case) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(1)
    shape = (case.rows, case.seq_len + 1)
    tokens = torch.randint(EOS_ID + 1, case.architecture.vocab_size, shape, generator=generator, device=DEVICE)
    return tokens.where(torch.rand(shape, generator=generator, device=DEVICE) > 1 / DOCUMENT_TOKENS, EOS_ID)


def that_run(ways: dict[str, SelectiveLM], tokens: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The ways that this version of torch has, each run once; what others lack is told."""
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, model in ways.items():
        run = partial(model.measure, tokens)
        try:
            run()
        except (AttributeError, ImportError, RuntimeError, TypeError) as error:
            print(f"{name}: not measured: {type(error).__name__}: {error}")
        else:
            runs[name] = run
    return runs


def measure(case: Case, peak: float, *, quick: bool) -> tuple[list[dict[str, str | float]], list[Bar]]:
    lm = drawn_on_device(case)
    tokens = rows_of(case)
    runs = that_run(ways_to_score(lm), tokens)
    masked = runs[MASKED]()
    apart = {name: float((run() - masked).abs().mean()) for name, run in runs.items()}
    times = in_turns(runs, repetitions=3 if quick else 9, clock=clock)
    operations = forward_flops_per_token(lm.config, case.seq_len) * case.rows * case.seq_len
    shares = {name: operations / taken.median / peak for name, taken in times.items()}
    rows: list[dict[str, str | float]] = [
        {
            "scoring": f"{case.name}, {case.rows} × {case.seq_len}, {name}",
            "tokens/s": case.rows * case.seq_len / taken.median,
            "MFU": shares[name],
            "peak GiB": peak_gib(runs[name]),
            "mean |difference|, nats": apart[name],
        }
        for name, taken in times.items()
    ]
    bars = [Bar(f"{case.name}, MFU, {name}", shares[name], LEAST_MFU, "higher") for name in (OURS, CAUSAL)]
    return rows, bars


def main() -> None:
    chosen = options(__doc__)
    rows: list[dict[str, str | float]] = []
    bars: list[Bar] = []
    question = "What share of a GPU's peak does scoring reach, and by which way to attend?"
    if DEVICE.type != "cuda" and not chosen.quick:
        report(f"{question} Not measured: this machine has none", rows, bars, chosen)
        return
    peak = peak_flops(device_name(DEVICE), "bf16") or NOMINAL_PEAK
    for case in quick_cases() if chosen.quick else full_cases():
        more_rows, more_bars = measure(case, peak, quick=chosen.quick)
        rows += more_rows
        bars += more_bars
    device = (
        f"{device_name(DEVICE)}, peak {peak / 1e12:.0f} TFLOP/s{'' if peak > NOMINAL_PEAK else ' for want of better'}, "
        f"{flash.implementation()}"
    )
    report(f"{question} {device}, bf16, random weights and tokens", rows, bars, chosen)


if __name__ == "__main__":
    main()
