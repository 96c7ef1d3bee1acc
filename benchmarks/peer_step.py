"""A step of training, and the start before the first one, beside the transformers Trainer under DeepSpeed ZeRO-3.

Both train the demo's model on the same rows, one process and one thread each. A step is the slope between a short and a
long run, in processor time of whole processes, so that start and end cancel. MegaSLM isolates documents, the Trainer
does not.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from harness.peer_trainer import PeerRun, llama_values
from harness.references import first_rows, prepare_text
from harness.report import Bar, options, report
from harness.timing import Times
from harness.training import ROOT, train

from megaslm.config.load import load
from megaslm.config.schema import RunConfig

SEQ_LEN, VOCAB_SIZE, MICRO_STEPS = 128, 4096, 2
KEEP_RATIO = 0.6
CLM, EXACT, TRAINER, ONLINE = "CLM", "SLM exact", "the Trainer", "the Trainer, reference online"


@dataclass(frozen=True)
class Length:
    """The steps of the short and of the long run, and how often both are run."""

    short: int
    long: int
    rounds: int
    micro_batch_rows: int


@dataclass(frozen=True)
class Spent:
    """One run: processor seconds of the whole process, and of the time up to its first step; wall seconds up to it."""

    seconds: float
    start_seconds: float
    start_wall_seconds: float


def run_process(command: Sequence[str], folder: Path, first_step: Path) -> Spent:
    """Runs a command whose first step shows in a file."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MASTER_PORT": str(free_port()),
    }
    with (folder / "output").open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        start: tuple[float, float] | None = None
        while (status := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            if start is None and first_step.exists() and first_step.stat().st_size:
                start = processor_seconds(process.pid), time.perf_counter() - started
            time.sleep(0.02)
        seconds = processor_seconds(process.pid)
    process.wait()
    if status.si_status or start is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'output').read_text()}")
    return Spent(seconds, *start)


def processor_seconds(pid: int) -> float:
    """User and system time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def score(tokens: Path, reference: Path, scored: Path) -> None:
    command = [sys.executable, "-m", "megaslm", "score", "--reference", reference, tokens, scored]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"score failed:\n{ran.stdout}{ran.stderr}")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def ours(folder: Path, dataset: Path, objective: dict[str, Any], length: Length, steps: int) -> Spent:
    """A run of `megaslm train` with the demo's settings."""
    batch_tokens = MICRO_STEPS * length.micro_batch_rows * SEQ_LEN
    config = {
        "base": str(ROOT / "configs" / "demo" / "base.yaml"),
        "run_dir": str(folder / "run"),
        "data": {"train": str(dataset), "domains": None, "loader_workers": 0},
        "train": {
            "total_tokens": steps * batch_tokens,
            "global_batch_tokens": batch_tokens,
            "micro_batch_rows": length.micro_batch_rows,
            "warmup_tokens": 0,
            "lr": 1e-6,
        },
        "validation": {"sets": {}},
        "log": {"every_steps": 1},
    }
    config["train"] |= objective.pop("train", {})
    (folder / "run.yaml").write_text(yaml.safe_dump(config | objective), encoding="utf-8")
    command = [sys.executable, "-m", "megaslm", "train", str(folder / "run.yaml")]
    return run_process(command, folder, folder / "run" / "metrics.jsonl")


def theirs(folder: Path, rows: Path, length: Length, steps: int, keep_ratio: float | None) -> Spent:
    """A run of the Trainer on the same rows."""
    base = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
    assert base.model.from_scratch is not None
    run = PeerRun(
        model=llama_values(base.model.from_scratch),
        rows=str(rows),
        folder=str(folder),
        steps=steps,
        micro_batch_rows=length.micro_batch_rows,
        micro_steps=MICRO_STEPS,
        zero={
            "reduce_bucket_size": base.zero.reduce_bucket_size,
            "stage3_prefetch_bucket_size": base.zero.prefetch_bucket_size,
            "stage3_param_persistence_threshold": base.zero.param_persistence_threshold,
        },
        online_keep_ratio=keep_ratio,
    )
    return run_process(run.command(), folder, folder / "steps.txt")


@dataclass(frozen=True)
class Measured:
    """One alternative: processor seconds per step, one per round, and of the start."""

    steps: Times
    start: Times
    start_wall_seconds: float


def measure(run: Callable[[Path, int], Spent], folder: Path, length: Length) -> list[tuple[Spent, Spent]]:
    found = []
    for steps in (length.short, length.long):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found.append(run(Path(place), steps))
    return [(found[0], found[1])]


def in_rounds(runs: dict[str, Callable[[Path, int], Spent]], folder: Path, length: Length) -> dict[str, Measured]:
    """Each round runs all alternatives, from another one on."""
    names, pairs = list(runs), {name: list[tuple[Spent, Spent]]() for name in runs}
    for number in range(length.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            pairs[name] += measure(runs[name], folder, length)
    between = length.long - length.short
    return {
        name: Measured(
            Times(tuple((long.seconds - short.seconds) / between for short, long in found)),
            Times(tuple((short.start_seconds + long.start_seconds) / 2 for short, long in found)),
            median(each.start_wall_seconds for pair in found for each in pair),
        )
        for name, found in pairs.items()
    }


def main() -> None:
    chosen = options(__doc__)
    length = Length(2, 12, 1, 4) if chosen.quick else Length(4, 20, 3, 32)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokens = prepare_text(folder, 100_000 if chosen.quick else 3_000_000, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN)
        reference = train(
            folder / "reference",
            tokens,
            vocab_size=VOCAB_SIZE,
            seq_len=SEQ_LEN,
            batch_rows=32,
            total_tokens=(2 if chosen.quick else 40) * 32 * SEQ_LEN,
        )
        scored = folder / "scored"
        score(tokens, reference, scored)
        rows = folder / "rows.npy"
        np.save(rows, first_rows(tokens, length.long * MICRO_STEPS * length.micro_batch_rows).numpy())
        slm = {"slm": {"keep_ratio": KEEP_RATIO, "reference": str(reference)}}
        measured = in_rounds(
            {
                CLM: lambda at, steps: ours(at, tokens, {}, length, steps),
                EXACT: lambda at, steps: ours(at, scored, slm | {"train": {"objective": "slm"}}, length, steps),
                TRAINER: lambda at, steps: theirs(at, rows, length, steps, None),
                ONLINE: lambda at, steps: theirs(at, rows, length, steps, KEEP_RATIO),
            },
            folder,
            length,
        )
    trainer, online = measured[TRAINER], measured[ONLINE]
    start = measured[CLM].start_wall_seconds / trainer.start_wall_seconds
    report(
        "How long does a step take beside the transformers Trainer with DeepSpeed ZeRO-3? The demo's model (1.26M "
        f"parameters), {MICRO_STEPS} micro-steps of {length.micro_batch_rows} rows of {SEQ_LEN}, k={KEEP_RATIO}, one "
        "process, one CPU thread, processor time",
        [
            {
                "training": name,
                "seconds per step": found.steps.median,
                "to the Trainer": found.steps.over(trainer.steps),
                "from – to": found.steps.spread(trainer.steps),
                "start, processor s": found.start.median,
                "start, wall s": found.start_wall_seconds,
            }
            for name, found in measured.items()
        ],
        [
            Bar("CLM to the Trainer", measured[CLM].steps.over(trainer.steps), 0.90),
            Bar("SLM exact to the Trainer", measured[EXACT].steps.over(trainer.steps), 0.85),
            Bar("SLM exact to the Trainer with an online reference", measured[EXACT].steps.over(online.steps), 0.60),
            Bar("start of CLM to the Trainer's, wall time", start, 1.0),
        ],
        chosen,
    )


if __name__ == "__main__":
    main()
