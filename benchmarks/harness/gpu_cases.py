"""One case of benchmarks/gpu_suite.py, in a process of its own: `python gpu_cases.py NAME OUT.json [--quick]`.

Random weights, in bf16; rows of random tokens in documents of uneven length, which lie on the device. A case on a CPU
is for trying the script: its numbers say nothing.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from harness.gpu import DEVICE, clock, peak_gib
from harness.peer_trainer import PeerRun, llama_values, run_alone, step_times
from harness.peer_trainer import peak_gib as peer_peak_gib
from harness.references import Whole
from harness.steps import EOS_ID, Steps, drawn_lm, shape_of, with_batch
from harness.timing import in_turns
from torch import Tensor
from transformers import LlamaConfig

from megaslm.config.load import load
from megaslm.config.plan import plan_batches
from megaslm.config.schema import Architecture, FlashAttention, RunConfig
from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.fixed_order import prepare_fixed_order
from megaslm.errors import ConfigError
from megaslm.files import write_file
from megaslm.model.attention import flash
from megaslm.model.decoder_layers import is_compiled, prepare_layers
from megaslm.model.documents import Documents
from megaslm.model.flops import device_name, peak_flops
from megaslm.model.forward_flops import ModelShape, forward_flops
from megaslm.model.memory import rank_memory
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, SelectionRule

ROOT = Path(__file__).parents[2]
KEEP_RATIO = Decimal("0.6")
MEAN_DOCUMENT_TOKENS, QUICK_DOCUMENT_TOKENS, DOCUMENT_SIGMA = 800, 16, 1.0
NOMINAL_PEAK = 1e12
"""For devices whose peak is not known, CPUs among them."""


@dataclass(frozen=True)
class Row:
    """What one case found. The MFU counts attention over whole rows, `mfu_documents` attention within documents."""

    case: str
    tokens_per_second: float
    seconds: float
    mfu: float
    mfu_documents: float
    peak_gib: float


@dataclass(frozen=True)
class Shape:
    """A model and the micro-batches that it is scored and trained in."""

    name: str
    config: str
    scored_rows: int
    trained_rows: int
    micro_steps: int = 2


SHAPES = {
    "7B": Shape("7B", "mistral-7b", scored_rows=8, trained_rows=2),
    "1.1B": Shape("1.1B", "tinyllama-1b", scored_rows=16, trained_rows=8),
}
QUICK_SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_position_embeddings": 64,
}


def config_of(shape: Shape, *, quick: bool) -> RunConfig:
    """The shape's run with its micro-batches; a toy of the same family where `quick`."""
    config = load(RunConfig, ROOT / "configs" / "shapes" / f"{shape.config}.yaml").value
    config = config.model_copy(update={"model": config.model.model_copy(update={"precision": precision()})})
    if not quick:
        return with_batch(config, shape.trained_rows, shape.micro_steps)
    model = config.model.model_copy(update={"from_scratch": Architecture.model_validate(QUICK_SHAPE)})
    data = config.data.model_copy(update={"seq_len": 64})
    return with_batch(config.model_copy(update={"model": model, "data": data}), 2, shape.micro_steps)


def precision() -> str:
    return "bf16" if DEVICE.type == "cuda" else "fp32"


def documents_of(vocab_size: int, *, quick: bool) -> Callable[[int, int], Tensor]:
    """Draws rows cut out of one stream of documents, whose lengths are log-normal."""
    mean_tokens = QUICK_DOCUMENT_TOKENS if quick else MEAN_DOCUMENT_TOKENS
    lengths = np.random.default_rng(1)
    generator = torch.Generator(DEVICE).manual_seed(1)

    def draw(rows: int, length: int) -> Tensor:
        tokens = torch.randint(EOS_ID + 1, vocab_size, (rows * length,), generator=generator, device=DEVICE)
        mean = np.log(mean_tokens) - DOCUMENT_SIGMA**2 / 2
        drawn = lengths.lognormal(mean, DOCUMENT_SIGMA, 1 + rows * length // 8).astype(int) + 1
        ends = np.cumsum(drawn) - 1
        tokens[torch.from_numpy(ends[ends < len(tokens)]).to(DEVICE)] = EOS_ID
        return tokens.view(rows, length)

    return draw


@dataclass(frozen=True)
class Work:
    """Model FLOPs of a pass over the tokens, by attention over whole rows and by attention within documents."""

    whole_rows: float
    documents: float

    @classmethod
    def forward(cls, config: ModelShape, tokens: Tensor) -> "Work":
        """Of a forward pass over (B, L+1) tokens."""
        count, seq_len = tokens[:, :-1].numel(), tokens.shape[1] - 1
        position = Documents.of_tokens(tokens[:, :-1], EOS_ID, tokens.device).positions
        # A token attends to its position's tokens and to itself; half a token is left out, as of whole rows.
        attended = position.double().mean().item() + 0.5
        flops = forward_flops(config)
        return cls(*(count * flops.attending(tokens_seen) for tokens_seen in (seq_len / 2, attended)))

    def times(self, factor: float) -> "Work":
        """The work of several passes."""
        return Work(factor * self.whole_rows, factor * self.documents)

    def row(self, case: str, tokens: int, seconds: float, peak: float) -> Row:
        """The row of a case that took so long, and so much memory in GiB."""
        per_second = (peak_flops(device_name(DEVICE), "bf16") or NOMINAL_PEAK) * seconds
        return Row(case, tokens / seconds, seconds, self.whole_rows / per_second, self.documents / per_second, peak)


def score(shape: Shape, *, quick: bool, attention: FlashAttention = "FA2") -> Iterator[Row]:
    """`megaslm score`'s forward pass over isolated documents."""
    try:
        flash.activate(attention, DEVICE, name="--flash-attention")
    except ConfigError as lacking:
        print(f"not measured: {lacking}")
        return
    config = config_of(shape, quick=quick)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    lm = drawn_lm(shape_of(config), dtype, Whole(), DEVICE).eval()
    prepare_layers(lm, recompute="none", compiled=is_compiled("auto", DEVICE, name="compile"))
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
    # On the host, as `score` reads them.
    shown = 2 if quick else shape.scored_rows
    tokens = documents_of(lm.config.vocab_size, quick=quick)(shown, config.data.seq_len + 1).cpu()
    times = in_turns({"score": lambda: model.measure(tokens)}, repetitions=3 if quick else 9, clock=clock)
    held = torch.cuda.memory_allocated() / (1 << 30) if DEVICE.type == "cuda" else 0.0
    work = Work.forward(lm.config, tokens)
    peak = held + peak_gib(lambda: model.measure(tokens))
    case = f"score {shape.name}" + ("" if attention == "FA2" else f", {attention}")
    yield work.row(case, tokens[:, 1:].numel(), times["score"].median, peak)


class Training:
    """Whole optimiser steps of a run, always on the same rows."""

    def __init__(self, config: RunConfig, *, quick: bool) -> None:
        self._steps = Steps(config, join_world(), documents_of(shape_of(config).vocab_size, quick=quick))
        self._batch = [self._steps.micro_batch() for _ in range(self._steps.plan.micro_steps)]
        self._repetitions = 2 if quick else 5
        tokens = torch.cat([micro_batch.tokens for micro_batch in self._batch])
        self._tokens = tokens[:, 1:].numel()
        # Three forward passes' worth, also for SLM, which computes less in the head.
        self._work = Work.forward(self._steps.model_config, tokens).times(3)

    def first(self, case: str) -> Row:
        """The row of the first step of all, in which the layers are compiled."""
        started = clock()
        peak = peak_gib(lambda: self._steps.step_on(self._batch, CausalObjective()))
        return self._work.row(case, self._tokens, clock() - started, peak)

    def row(self, case: str, objective: Objective) -> Row:
        """The row of the median step, after one to warm up."""
        runs: dict[str, Callable[[], object]] = {case: lambda: self._steps.step_on(self._batch, objective)}
        taken = in_turns(runs, self._repetitions, clock)[case]
        held = torch.cuda.memory_allocated() / (1 << 30) if DEVICE.type == "cuda" else 0.0
        return self._work.row(case, self._tokens, taken.median, held + peak_gib(runs[case]))


def train(shape: Shape, *, quick: bool) -> Iterator[Row]:
    """CLM, then exact SLM."""
    config = config_of(shape, quick=quick)
    if lacks_memory(config):
        return
    training = Training(config, quick=quick)
    yield training.first(f"train {shape.name}, first step")
    yield training.row(f"train {shape.name}, CLM", CausalObjective())
    rule = SelectionRule(KeepRatio(KEEP_RATIO))
    yield training.row(f"train {shape.name}, SLM exact", SelectiveObjective(rule))
    leave_world()


def train_with(setting: str, value: object, shape: Shape, *, quick: bool) -> Iterator[Row]:
    """CLM with one setting changed, such as `train.deterministic`."""
    base = config_of(shape, quick=quick)
    section, key = setting.split(".")
    changed = getattr(base, section).model_copy(update={key: value})
    config = base.model_copy(update={section: changed})
    if lacks_memory(config):
        return
    if config.train.deterministic:
        prepare_fixed_order()
    yield Training(config, quick=quick).row(f"train {shape.name}, CLM, {key} {value}", CausalObjective())
    leave_world()


def peer(shape: Shape, *, quick: bool) -> Iterator[Row]:
    """The transformers Trainer with DeepSpeed ZeRO-3 on rows of the same kind, documents not isolated."""
    config = config_of(shape, quick=quick)
    if lacks_memory(config):
        return
    count = 3 if quick else 8
    rows_a_step = config.train.micro_batch_rows * shape.micro_steps
    with tempfile.TemporaryDirectory() as place:
        draw = documents_of(shape_of(config).vocab_size, quick=quick)
        tokens = draw(count * rows_a_step, config.data.seq_len + 1)
        np.save(f"{place}/rows.npy", tokens.cpu().numpy())
        run = PeerRun(
            model=llama_values(shape_of(config)),
            rows=f"{place}/rows.npy",
            folder=place,
            steps=count,
            micro_batch_rows=config.train.micro_batch_rows,
            micro_steps=shape.micro_steps,
            zero={},
            bf16=DEVICE.type == "cuda",
            recompute=config.model.recompute != "none",
        )
        work = Work.forward(run.llama_config(), tokens[:rows_a_step]).times(3)
        del tokens  # The Trainer's process is to have the device.
        run_alone(run)
        ends = step_times(Path(place))
        seconds = median(np.diff(ends)[1:])
        peak = peer_peak_gib(Path(place))
    yield work.row(f"train {shape.name}, the Trainer", rows_a_step * config.data.seq_len, float(seconds), peak)


def lacks_memory(config: RunConfig) -> bool:
    """Whether the device cannot hold a CLM step of the run."""
    if DEVICE.type != "cuda":
        return False
    model = LlamaConfig(**llama_values(shape_of(config)))
    memory = rank_memory(config, plan_batches(config, 1), model, "bf16", on_gpu=True)
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    if memory.peak_bytes < total:
        return False
    print(f"not measured: needs {memory.peak_bytes / (1 << 30):.0f} GiB, the device has {total / (1 << 30):.0f} GiB")
    return True


def head(*, quick: bool) -> Iterator[Row]:
    """The selective head by itself, of a 7B."""
    from head_gpu import QUICK, SIZES, Forecast, Head, kept_above, losses_in_chunks

    size = QUICK[0] if quick else SIZES[0]
    measured = Head(size)
    forecast = Forecast(kept_above(losses_in_chunks(Head(size, seed=1))))
    runs: dict[str, Callable[[], object]] = {
        "cache": lambda: measured.ours("cache"),
        "bracket": lambda: measured.ours("bracket", forecast),
    }
    times = in_turns(runs, repetitions=3 if quick else 15, clock=clock)
    operations = (2 + 4 * float(KEEP_RATIO)) * size.rows * size.width * size.vocab_size
    for name, taken in times.items():
        yield Work(operations, operations).row(f"head, {name}", size.rows, taken.median, peak_gib(runs[name]))


def matrix_product(*, quick: bool) -> Iterator[Row]:
    """What a plain product of large matrices reaches here: the card's clocks and power limit bound every other row."""
    side = 256 if quick else 8192
    left, right = (torch.randn(side, side, device=DEVICE).to(torch.bfloat16) for _ in range(2))
    runs: dict[str, Callable[[], object]] = {"product": lambda: [left @ right for _ in range(20)]}
    seconds = in_turns(runs, repetitions=3 if quick else 15, clock=clock)["product"].median / 20
    yield Work(2.0 * side**3, 2.0 * side**3).row(f"product of {side} × {side}", side, seconds, 0.0)


SETTINGS: tuple[tuple[str, object], ...] = (
    ("train.deterministic", True),
    ("model.recompute", "selective"),
    ("model.recompute", "full"),
)
"""What is measured beside the default."""
OTHER_ATTENTION: dict[FlashAttention, str] = {"FA3": "flash_attn_interface", "FA4": "flash_attn"}
"""Measured where these modules are installed."""
CASES: dict[str, Callable[..., Iterator[Row]]] = {
    "product": matrix_product,
    **{f"train {name}": partial(train, shape) for name, shape in SHAPES.items()},
    **{f"score {name}": partial(score, shape) for name, shape in SHAPES.items()},
    **{f"peer {name}": partial(peer, shape) for name, shape in SHAPES.items()},
    "head": head,
    **{f"train 1.1B, {name} {value}": partial(train_with, name, value, SHAPES["1.1B"]) for name, value in SETTINGS},
    **{
        f"score 7B, {name}": partial(score, SHAPES["7B"], attention=name)
        for name, module in OTHER_ATTENTION.items()
        if find_spec(module) is not None
    },
}
"""In the order in which they are run: the most valuable first, after the one that the others are read by."""


if __name__ == "__main__":
    rows: list[dict[str, str | float]] = []
    for row in CASES[sys.argv[1]](quick="--quick" in sys.argv):
        rows.append(asdict(row))
        # Whole at any time: a case that fails later keeps the rows that it has.
        write_file(Path(sys.argv[2]), json.dumps(rows))
