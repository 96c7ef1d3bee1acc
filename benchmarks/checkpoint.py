"""How long training stands still for a checkpoint, beside a save that is waited for and DeepSpeed's own; and what an
export of it takes of the memory, beside the optimiser's states.

A fresh checkpoint folder for each save, on the disk of the temporary folder. Ours are hashed and on the disk when they
are done; DeepSpeed's are neither. On a GPU the model is larger and computes in bf16; what is saved is float32 all the
same.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from harness.corpora import texts, train_tokenizer
from harness.gpu import DEVICE, clock
from harness.memory import peak_bytes
from harness.references import llama
from harness.report import Bar, options, report
from harness.timing import Times

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.retention import Retention
from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.files import write_file
from megaslm.model.flops import device_name
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.checkpoints.store import resume

EOS_ID = 2
# An export has a tokenizer beside the weights.
_TOKENIZER_BYTES, _PIECES = 500_000, 1_000
MOST_PAUSE = 0.1
PAUSE, WAITED_FOR = "the pause", "a save that is waited for"
COPY, COMMIT = "of it, the copy on the host", "of it, listing and naming what was written"


def run_config(width: int, layers: int) -> RunConfig:
    shape = llama(8192, width, layers)
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "model": {"from_scratch": shape.model_dump()},
            "data": {"train": "unused", "seq_len": 128},
            "train": {
                "objective": "clm",
                "total_tokens": 10_000,
                "global_batch_tokens": 1024,
                "micro_batch_rows": 8,
                "lr": 1e-3,
            },
        }
    )


class Saves:
    """A model with moments under ZeRO-3, one rank, and its saves by each way."""

    def __init__(self, folder: Path, width: int, layers: int) -> None:
        config = run_config(width, layers)
        world = join_world()
        on_gpu = world.device.type == "cuda"
        precision: Literal["bf16", "fp32"] = "bf16" if on_gpu else "fp32"
        settings = deepspeed_settings(config, plan_batches(config, world.size), precision=precision, on_gpu=on_gpu)
        architecture = config.model.from_scratch
        assert architecture is not None
        sharding = ZeroSharding(settings)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=dtype)
        lm.config.dtype = dtype
        lm.config.save_pretrained(folder / "model")
        train_tokenizer(folder / "model", texts(_TOKENIZER_BYTES), _PIECES)
        write_file(folder / "config.yaml", dump(config))
        draw_weights(lm, seed=0, standard_deviation=architecture.initializer_range, sharding=sharding)
        model = SelectiveLM(lm.train(), eos_id=EOS_ID, document_isolation=True)
        self.engine = ZeroEngine(model, settings, adamw(model, settings, config.train))
        self.world = world
        self.state = self.engine.state()
        self.state.make_moments(1)
        self.bytes = 12 * sum(fragment.count for fragment in self.state.fragments)
        self.folder = folder
        self.saver = Saver(
            folder / "checkpoints",
            self.state,
            dump(config),
            world,
            CpuGroup(world),
            retention=Retention(1, None),
            max_failed=1,
            corrupt=(),
            say=lambda line: None,
            on_saved=lambda progress: None,
            how_to_start_again=lambda: "start again",
        )
        self.step = 0

    def begin(self) -> None:
        self.step += 1
        self.saver.begin(Progress(step=self.step))

    def until_written(self) -> None:
        while self.saver.running_and_failed[0]:
            time.sleep(0.001)

    def commit(self) -> None:
        self.saver.settle(*self.saver.running_and_failed)

    def wait(self) -> None:
        self.saver.wait(may_fail=False)

    def save(self) -> None:
        self.begin()
        self.wait()

    def save_as_deepspeed_does(self) -> None:
        # The engine's wrapper has no such call any more.
        self.engine._engine.save_checkpoint(str(self.folder / "deepspeed"), tag="step", save_latest=False)

    def forget_deepspeeds(self) -> None:
        shutil.rmtree(self.folder / "deepspeed", ignore_errors=True)

    def load(self) -> None:
        resume(self.folder / "checkpoints", self.state, self.world, lambda line: None)


def timed(saves: Saves, repetitions: int) -> tuple[dict[str, Times], float]:
    """Wall seconds of each way, in turns; what one leaves to do or to remove is done before the next begins.

    The first round is left out, but for its pause, in which room on the host is made.
    """
    ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        COPY: (saves.begin, saves.until_written),
        COMMIT: (saves.commit, saves.wait),
        WAITED_FOR: (saves.save, lambda: None),
        "DeepSpeed's save_checkpoint": (saves.save_as_deepspeed_does, saves.forget_deepspeeds),
        "verified and loaded again": (saves.load, lambda: None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions + 1):
        for name, (way, afterwards) in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
            afterwards()
    pauses = [copy + commit for copy, commit in zip(seconds[COPY], seconds[COMMIT], strict=True)]
    times = {PAUSE: pauses, **seconds}
    return {name: Times(tuple(taken[1:])) for name, taken in times.items()}, pauses[0]


def export_run(run: str) -> None:
    """Exports the newest checkpoint of a run; `nothing` imports what that takes and no more."""
    from megaslm.training.export import export

    if run != "nothing":
        export(Path(run), Path(run) / "exported")
        shutil.rmtree(Path(run) / "exported")


def main() -> None:
    chosen = options(__doc__)
    width, layers, repetitions = (
        (256, 2, 2) if chosen.quick else (2048, 2, 5) if DEVICE.type == "cuda" else (1024, 4, 7)
    )
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary)
        saves = Saves(run, width, layers)
        times, first_pause = timed(saves, repetitions)
        exported_bytes = peak_bytes(export_run, str(run), repetitions=1 if chosen.quick else 3)
    waited_for = times[WAITED_FOR]
    pause = times[PAUSE]
    rows = [
        {
            "": name,
            "seconds": taken.median,
            "MB/s": saves.bytes / 1e6 / taken.median,
            "to a save that is waited for": taken.over(waited_for),
            "from – to": taken.spread(waited_for),
        }
        for name, taken in times.items()
    ]
    rows.append(
        {
            "": "the first pause, which makes room on the host",
            "seconds": first_pause,
            "MB/s": saves.bytes / 1e6 / first_pause,
            "to a save that is waited for": first_pause / waited_for.median,
            "from – to": "",
        }
    )
    report(
        f"How long does training stand still for a checkpoint of {saves.bytes / 1e6:,.0f} MB? One rank of ZeRO-3 on "
        f"{device_name(DEVICE)}, on the wall clock",
        rows,
        [
            Bar("the pause to a save that is waited for", pause.over(waited_for), MOST_PAUSE),
            Bar("memory of an export to Adam's moments", exported_bytes / (saves.bytes * 2 / 3), 1.0),
        ],
        chosen,
    )
    leave_world()


if __name__ == "__main__":
    main()
