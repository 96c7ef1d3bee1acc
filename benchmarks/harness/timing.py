"""Times of alternatives in one process, in turns, so that the machine's moods meet all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Times:
    """Seconds of processor time, one a repetition; the n-th of two alternatives were taken side by side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def over(self, other: "Times") -> float:
        """The median of the ratios, repetition by repetition."""
        return median(self._ratios(other))

    def spread(self, other: "Times") -> str:
        """The smallest and the largest of these ratios."""
        return f"{min(self._ratios(other)):.3f}–{max(self._ratios(other)):.3f}"

    def _ratios(self, other: "Times") -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]


def in_turns(
    alternatives: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Times]:
    """Runs all alternatives once to warm up, then `repetitions` times in turns, each round from another one on."""
    names = list(alternatives)
    for name in names:
        alternatives[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repetitions):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = clock()
            alternatives[name]()
            seconds[name].append(clock() - started)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}
