"""How long a model-written program takes in the sandbox, and how long the sandbox takes to start."""

import os
import resource
import time
from statistics import median, quantiles
from typing import NamedTuple

from harness.report import Bar, options, report

from megaslm.errors import SandboxError
from megaslm.sandbox.sandbox import Sandbox
from megaslm.sandbox.tiers import TierName

PROGRAMS = {
    "print": "print(6 * 7)",
    "solve": "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 5*x + 6, x))",
}
TIERS: tuple[TierName, ...] = ("bubblewrap", "landlock")
MOST_MILLISECONDS = 40


class Times(NamedTuple):
    """Wall time until the first program can run; wall time of each program; processor time of all that ran."""

    start_seconds: float
    milliseconds: list[float]
    processor_seconds: float


def run(tier: TierName, programs: list[str]) -> Times:
    """One worker runs the programs, one after another. Raises a SandboxError where the tier does not work."""
    processor_before = processor_seconds()
    started = time.perf_counter()
    with Sandbox(workers=1, tier=tier) as sandbox:
        start_seconds = time.perf_counter() - started
        milliseconds = []
        for program in programs:
            started = time.perf_counter()
            (result,) = sandbox.run([program])
            milliseconds.append((time.perf_counter() - started) * 1000)
            if result.error is not None:
                raise SystemExit(f"{program!r} ended with {result.error}: nothing was measured")
    return Times(start_seconds, milliseconds, processor_seconds() - processor_before)


def processor_seconds() -> float:
    """Of this process's ended children, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    chosen = options(__doc__)
    repetitions = 20 if chosen.quick else 300
    rows: list[dict[str, str | float | int]] = []
    bars: list[Bar] = []
    for tier in TIERS:
        try:
            alone = run(tier, [])
        except SandboxError as error:
            print(f"{tier} is left out: {error}")
            continue
        for name, program in PROGRAMS.items():
            found = run(tier, [program] * repetitions)
            processor = (found.processor_seconds - alone.processor_seconds) / repetitions * 1000
            rows.append(
                {
                    "tier": tier,
                    "program": name,
                    "start, s": found.start_seconds,
                    "median, ms": median(found.milliseconds),
                    "95%, ms": quantiles(found.milliseconds, n=20)[-1],
                    "processor time, ms": processor,
                }
            )
            if name == "print":
                bars.append(Bar(f"median ms, {tier}", median(found.milliseconds), MOST_MILLISECONDS))
    if not rows:
        raise SystemExit("no tier works here: nothing was measured")
    report(
        "How long does a program take in the sandbox? One worker, wall time and processor time; "
        f"{os.cpu_count()} cores under a load of {os.getloadavg()[0]:.1f}",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
