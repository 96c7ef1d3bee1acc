"""Scoring, training and the head on one GPU in bf16, in at most 8 minutes; without a GPU only --quick runs, on the CPU.

Each case is a process of its own, so that one that fails or runs out of memory costs no other, and keeps the rows that
it had. No case has more than 150 s. The numbers are written after each case. MFU is model FLOPs
(megaslm/model/forward_flops.py; recomputation does not count) by what the maker states for dense products at full
power. It is stated twice: with attention counted over whole rows, and within documents.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.gpu import DEVICE
from harness.gpu_cases import CASES, NOMINAL_PEAK, Row
from harness.report import Bar, Options, options, print_report, write_report
from harness.training import ROOT

from megaslm.model.flops import device_name, peak_flops

BUDGET_SECONDS, MOST_SECONDS_OF_A_CASE = 480, 150
LEAST_MFU = {"score 7B": 0.60, "score 1.1B": 0.52, "train 7B, CLM": 0.55, "train 1.1B, CLM": 0.50}


def run_case(name: str, seconds: float, *, quick: bool) -> list[Row]:
    """The rows of a case, as far as it came; why it did not come to its end is printed."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "rows.json"
        command = [sys.executable, "-m", "harness.gpu_cases", name, str(out), *(["--quick"] if quick else [])]
        return rows_of(name, command, out, seconds)


def rows_of(name: str, command: list[str], out: Path, seconds: float) -> list[Row]:
    """The rows that a command writes to `out` in so many seconds."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
            ended = f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            # With what it started: the Trainer would keep the device's memory.
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            ended = f"took longer than {seconds:.0f} s"
    rows = [Row(**row) for row in json.loads(out.read_text(encoding="utf-8"))] if out.exists() else []
    if process.returncode:
        print(f"{name}: {ended}, after {len(rows)} rows: {printed[-2000:]}")
    elif not rows:
        print(f"{name}: {printed[-2000:]}")
    return rows


def bars_of(found: dict[str, Row]) -> list[Bar]:
    """The bars of the rows that there are."""
    bars = [Bar(f"{name}: MFU", found[name].mfu, least, "higher") for name, least in LEAST_MFU.items() if name in found]
    for model in ("7B", "1.1B"):
        clm, slm, peer = (found.get(f"train {model}, {name}") for name in ("CLM", "SLM exact", "the Trainer"))
        if clm and slm:
            bars.append(Bar(f"train {model}: SLM exact to CLM, seconds", slm.seconds / clm.seconds, 1.0))
        if clm and peer:
            rate = clm.tokens_per_second / peer.tokens_per_second
            bars.append(Bar(f"train {model}: CLM to the Trainer, tokens/s", rate, 1.25, "higher"))
    return bars


def shown(row: Row) -> dict[str, str | float | int]:
    return {
        "case": row.case,
        "seconds": row.seconds,
        "tokens/s": round(row.tokens_per_second),
        "MFU": row.mfu,
        "MFU, documents": row.mfu_documents,
        "peak GiB": row.peak_gib,
    }


def power_limit() -> str:
    """The card's power limit and the most that could be set: a capped card cannot reach its maker's peak."""
    asked = "--query-gpu=power.limit,power.max_limit"
    try:
        ran = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return ran.stdout.strip().splitlines()[0].replace(", ", " of ") if ran.returncode == 0 else "unknown"


def measure_all(chosen: Options, question: str) -> tuple[list[Row], list[Bar]]:
    """Runs the cases while there is time, and writes what is there after each."""
    started, found = time.monotonic(), dict[str, Row]()
    for name in CASES:
        left = BUDGET_SECONDS - (time.monotonic() - started)
        if left <= 0:
            print(f"{name}: not measured: the {BUDGET_SECONDS} s are over")
            continue
        found |= {row.case: row for row in run_case(name, min(left, MOST_SECONDS_OF_A_CASE), quick=chosen.quick)}
        write_report(question, [shown(row) for row in found.values()], bars_of(found), chosen)
    return list(found.values()), bars_of(found)


def main() -> None:
    chosen = options(__doc__)
    question = "What share of a GPU's peak do scoring and training reach?"
    if DEVICE.type != "cuda" and not chosen.quick:
        question += " Not measured: this machine has none"
        print_report(question, [], [])
        write_report(question, [], [], chosen)
        return
    peak = peak_flops(device_name(DEVICE), "bf16")
    stated = f"peak {(peak or NOMINAL_PEAK) / 1e12:.0f} TFLOP/s{'' if peak else ' for want of better'}"
    question += f" {device_name(DEVICE)}, {stated}, power limit {power_limit()}, bf16, random weights and tokens"
    rows, bars = measure_all(chosen, question)
    print_report(question, [shown(row) for row in rows], bars)


if __name__ == "__main__":
    main()
