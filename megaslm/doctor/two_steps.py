"""The dry run: the smoke test of a run in processes of its own, so that nothing that ends them ends the doctor."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megaslm.config.run_files import SMOKE
from megaslm.doctor.check import Check
from megaslm.observe.display import counted, gib

STEPS = 2
"""The second step shows whether the first one left room: the optimiser's states are allocated in the first."""
_LINES_TOLD = 12
_WARNING = "warning: "
_PATIENCE_SECONDS = 60
_OF_TORCHRUN = re.compile(r"[IWE]\d{4} .*torch/distributed/")
_REPORT = re.compile(r"E\d{4} .*torch/distributed/elastic/")


@dataclass(frozen=True)
class DryRun:
    """A smoke test that is to be made."""

    config: Path
    overrides: Sequence[str]
    run_dir: str
    """Replaces that of the run, so that no smoke test of the user is replaced."""
    folder: Path
    """The folder that a smoke test of a run in `run_dir` makes."""
    ranks: int

    def command(self) -> list[str]:
        """The command that makes it, on this host alone."""
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        settings = [word for each in (*self.overrides, f"run_dir={self.run_dir}") for word in ("--set", each)]
        train = ["-m", "megaslm", "train", str(self.config), "--smoke-steps", str(STEPS), *settings]
        return [sys.executable, *(several if self.ranks > 1 else []), *train]


def make(dry_run: DryRun) -> Iterator[Check]:
    """Makes the steps. The folder is removed where they worked, and named where they did not."""
    ranks = counted(dry_run.ranks, "rank")
    status, lines = _run(dry_run.command())
    if status != 0:
        told = "\n".join([f"{STEPS} steps on {ranks} ended with status {status}:", *of_ranks(lines)[-_LINES_TOLD:]])
        remedy = f"do what its last lines say; {dry_run.folder} keeps what it left"
        yield Check("dry run", "problem", told, remedy, {"command": dry_run.command(), "output": lines})
        return
    for line in lines:
        if line.startswith(_WARNING):
            yield Check("dry run", "warning", line.removeprefix(_WARNING))
    result = json.loads((dry_run.folder / SMOKE).read_text(encoding="utf-8"))
    shutil.rmtree(dry_run.folder)
    first, last = result["losses"][0], result["losses"][-1]
    found = (
        f"{counted(result['steps'], 'step')} on {ranks}: loss {first:.4f} → {last:.4f}, "
        f"{result['step_seconds']:.3g} s per step, at most "
        f"{gib(result['peak_memory']['peak_bytes'])} GiB per rank; "
        "a checkpoint was written, read back and removed"
    )
    yield Check("dry run", "ok", found, facts={"command": dry_run.command(), "result": result, "output": lines})


def of_ranks(lines: Sequence[str]) -> list[str]:
    """The lines that ranks printed. torchrun ends with a report of its own, which hides their last words."""
    end = next((number for number, line in enumerate(lines) if _REPORT.match(line)), len(lines))
    return [line for line in lines[:end] if not _OF_TORCHRUN.match(line)]


def _run(command: Sequence[str]) -> tuple[int, list[str]]:
    """The exit status of a command, and what it printed without empty lines."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        printed, _ = process.communicate()
    except BaseException:
        # Ranks answer SIGTERM between two steps; torchrun passes it on to them.
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    return process.returncode, [line.rstrip() for line in printed.splitlines() if line.strip()]
