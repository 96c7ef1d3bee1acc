"""What the doctor looked at: the findings, their order, and what to do about them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megaslm import __version__
from megaslm.config.section import without_credentials
from megaslm.errors import UserMistake
from megaslm.observe.display import counted

Status = Literal["ok", "warning", "problem"]
Look = Callable[[], Iterable["Check"]]

_LONGEST_TOPIC = 14


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    topic: str
    status: Status
    """A problem keeps the run, or any run, from starting. A warning does not."""
    found: str
    to_do: str = ""
    """A command or a setting; empty where nothing is to be done, or where `found` says it."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """More of it, as JSON; for whoever reads a bug report."""

    def lines(self) -> str:
        """The finding for a terminal; the lines of a longer message are indented."""
        told = without_credentials(f"{self.found} · {self.to_do}" if self.to_do else self.found)
        return f"{self.status:7} · {self.topic:{_LONGEST_TOPIC}} · {_indented(told, 4)}"


class Diagnosis:
    """The findings so far. Each is told as soon as it is made: what follows may take long, or end the process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` prints a line."""
        self.checks: list[Check] = []
        self._say = say

    def look(self, topic: str, look: Look, *, otherwise: Status = "warning") -> bool:
        """Adds and tells the findings of `look`; whether none of them is a problem.

        A mistake of the user that it raises is a problem. Any other error is of the status `otherwise`: the doctor is
        called where things are broken, and the other findings are needed then.
        """
        before = len(self.checks)
        try:
            for check in look():
                self._add(check)
        except UserMistake as mistake:
            self._add(Check(topic, "problem", str(mistake)))
        except Exception as error:
            told = f"cannot be looked at ({type(error).__name__}: {error})"
            self._add(Check(topic, otherwise, told, "mend what the message names, or send it with a bug report"))
        return all(check.status != "problem" for check in self.checks[before:])

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        self._say(check.lines())

    def count(self, status: Status) -> int:
        """The number of findings of this status."""
        return sum(check.status == status for check in self.checks)

    def to_do(self) -> list[str]:
        """What to do, problems first."""
        wrong = [check for status in ("problem", "warning") for check in self.checks if check.status == status]
        return [f"{check.topic}: {without_credentials(check.to_do or check.found)}" for check in wrong]

    def end(self) -> None:
        """Tells which lines say what to do."""
        told = [
            f"{counted(self.count(status), status)} ({', '.join(topics)})"
            for status in ("problem", "warning")
            if (topics := dict.fromkeys(check.topic for check in self.checks if check.status == status))
        ]
        does = "its line says" if len(self.to_do()) == 1 else "their lines say"
        self._say(f"doctor · {' and '.join(told)}: {does} what to do" if told else "doctor · nothing to do")

    def as_json(self, config: Path | None) -> dict[str, object]:
        """All findings with their facts. No URL in it holds credentials."""
        checks = [
            {
                "topic": check.topic,
                "status": check.status,
                "found": check.found,
                "to_do": check.to_do,
                "facts": dict(check.facts),
            }
            for check in self.checks
        ]
        result = {
            "megaslm": __version__,
            "config": None if config is None else str(config),
            "problems": self.count("problem"),
            "warnings": self.count("warning"),
            "checks": checks,
            "to_do": self.to_do(),
        }
        return {name: _clean(value) for name, value in result.items()}


def _indented(text: str, columns: int) -> str:
    """A text whose lines after the first begin at a column."""
    first, *others = text.splitlines() or [""]
    return "\n".join([first, *(f"{'':{columns}}{line.strip()}" for line in others)])


def _clean(value: object) -> object:
    """A value for JSON, with stars in place of the credentials of URLs."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _clean(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_clean(entry) for entry in value]
    return without_credentials(str(value))
