"""How long a model-written program takes in the sandbox, and how long the sandbox takes to start."""

import os
import time
from collections.abc import Sequence
from statistics import median, quantiles

from harness.report import Bar, options, report

from megaslm.errors import SandboxError
from megaslm.sandbox.sandbox import Sandbox
from megaslm.sandbox.tiers import TierName

PROGRAMS = {
    "print": "print(6 * 7)",
    "sympy": "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 5*x + 6, x), simplify(sin(x)**2 + cos(x)**2))",
}
TIERS: tuple[TierName, ...] = ("bubblewrap", "landlock")
MOST_MILLISECONDS = 40


def milliseconds(sandbox: Sandbox, program: str, repetitions: int) -> list[float]:
    """Wall time of one program after another."""
    taken = []
    for _ in range(repetitions):
        started = time.perf_counter()
        (result,) = sandbox.run([program])
        taken.append((time.perf_counter() - started) * 1000)
        if result.error is not None:
            raise SystemExit(f"{program!r} ended with {result.error}: nothing was measured")
    return taken


def main() -> None:
    chosen = options(__doc__)
    repetitions = 20 if chosen.quick else 300
    rows: list[dict[str, str | float | int]] = []
    bars: list[Bar] = []
    for tier in TIERS:
        started = time.perf_counter()
        try:
            with Sandbox(workers=1, tier=tier) as sandbox:
                start_seconds = time.perf_counter() - started
                for name, program in PROGRAMS.items():
                    taken = milliseconds(sandbox, program, repetitions)
                    rows.append(row(tier, name, start_seconds, taken))
                    if name == "print":
                        bars.append(Bar(f"median ms, {tier}", median(taken), MOST_MILLISECONDS))
        except SandboxError as error:
            print(f"{tier} is left out: {error}")
    if not rows:
        raise SystemExit("no tier works here: nothing was measured")
    load = os.getloadavg()[0]
    question = (
        f"How long does a program take in the sandbox? Wall time, one worker; {os.cpu_count()} cores, load {load:.1f}"
    )
    report(question, rows, bars, chosen)


def row(tier: str, name: str, start_seconds: float, taken: Sequence[float]) -> dict[str, str | float | int]:
    return {
        "tier": tier,
        "program": name,
        "start, s": start_seconds,
        "median, ms": median(taken),
        "95%, ms": quantiles(taken, n=20)[-1],
    }


if __name__ == "__main__":
    main()
