"""How long `megaslm plan` takes for each run of configs/, start of Python included."""

import os
import subprocess
import sys
from pathlib import Path

from harness.commands import timed
from harness.report import Bar, options, report

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if "eval" not in path.parts)
QUICK_RUNS = 2
MOST_SECONDS = 10.0
MACHINE = ("--gpus", "32", "--gpu", "h100-80g", "--epoch-tokens", "0.15e9")


def main() -> None:
    chosen = options(__doc__)
    found = [_plan(run) for run in (RUNS[:QUICK_RUNS] if chosen.quick else RUNS)]
    report(
        "How long does a plan take? One thread",
        found,
        [Bar("seconds, at most", max(float(row["seconds"]) for row in found), MOST_SECONDS)],
        chosen,
    )


def _plan(run: Path) -> dict[str, str | float | int]:
    # The demo's runs continue one another, and the methods those; none has been trained.
    shape = ("--model", str(CONFIGS / "demo" / "base.yaml")) if run.parent.name in ("demo", "methods") else ()
    command = (sys.executable, "-m", "megaslm", "plan", str(run), *MACHINE, *shape)
    with timed() as took:
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)
    return {"run": str(run.relative_to(CONFIGS)), **took}


if __name__ == "__main__":
    main()
