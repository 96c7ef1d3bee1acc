"""What it costs to leave no freed memory unused: peak and time of the demo's step, by the way memory is allocated."""

import json
import os
import subprocess
import sys
import time
from argparse import SUPPRESS
from pathlib import Path
from statistics import median

import torch
from harness.report import Bar, Options, option_parser, report
from harness.steps import Steps, frequent_and_rare, shape_of, with_batch

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import join_world, leave_world
from megaslm.health.host_facts import resident_bytes
from megaslm.slm.objective import CausalObjective

ROOT = Path(__file__).parents[1]
DEFAULT, GIVING_BACK = "glibc's default", "MALLOC_MMAP_THRESHOLD_=65536"


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--preload", metavar="LIBRARY", help="another allocator, such as libjemalloc.so.2")
    parser.add_argument("--rows", type=int, help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows is not None:
        measure(arguments.rows)
        return
    rows, rounds = (8, 1) if arguments.quick else (32, 2)
    ways = [DEFAULT, GIVING_BACK, *([f"LD_PRELOAD={arguments.preload}"] if arguments.preload else [])]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(in_a_process(way, rows))
    rows_found: list[dict[str, str | float]] = [
        {
            "allocation": way,
            "seconds per step": median(one["seconds"] for one in ones),
            "default to this": median(
                default["seconds"] / one["seconds"] for one, default in zip(ones, found[DEFAULT], strict=True)
            ),
            "peak above the process, MB": median(one["peak_bytes"] for one in ones) / 1e6,
        }
        for way, ones in found.items()
    ]
    report(
        f"Peak and time of a CLM step of the demo's model (1.26M parameters), {rows} rows of 128, one CPU thread, "
        f"processor time, a process for each measurement, {rounds} rounds",
        rows_found,
        [Bar(f"time of the default to {GIVING_BACK}", float(rows_found[1]["default to this"]), 1.0)],
        Options(arguments.quick, arguments.json),
    )


def in_a_process(way: str, rows: int) -> dict[str, float]:
    """What `measure` says where an environment variable decides how memory is allocated."""
    set_to = {} if way == DEFAULT else dict([way.split("=", 1)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | set_to
    words = [sys.executable, __file__, "--rows", str(rows)]
    said = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    measured: dict[str, float] = json.loads(said.splitlines()[-1])
    return measured


def measure(rows: int) -> None:
    """Prints the processor time of a step, and the peak above what the process held before the first one."""
    torch.set_num_threads(1)
    world = join_world()
    config = with_batch(load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value, rows, 1)
    steps = Steps(config, world, frequent_and_rare(shape_of(config).vocab_size, world.device))
    held_bytes = resident_bytes("VmRSS")
    steps.step(CausalObjective())
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        steps.step(CausalObjective())
        seconds.append(time.process_time() - begun)
    print(json.dumps({"seconds": median(seconds), "peak_bytes": resident_bytes("VmHWM") - held_bytes}), flush=True)
    leave_world()


if __name__ == "__main__":
    main()
