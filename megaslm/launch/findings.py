"""What a dry run found: problems, warnings, and what cannot be seen from this host."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from textwrap import indent
from typing import TypeVar

from megaslm.config.load import DEFAULT
from megaslm.config.section import refuse_credentials, without_credentials
from megaslm.dataset.manifest import Manifest
from megaslm.errors import InputError, UserMistake
from megaslm.storage.file_systems import connect, is_remote
from megaslm.storage.retries import RemoteSettings

T = TypeVar("T")


class Reach(Enum):
    """Which of a job's files this host sees."""

    ALL = "the ranks run on this host"
    SHARED = "the ranks' hosts share the current folder with this one"
    NONE = "the job's files are elsewhere"


@dataclass
class Findings:
    """Collects all findings, so that they can be told at once."""

    reach: Reach
    why_unseen: str
    """Why an input that this host does not see is no problem."""
    problems: list[str] = field(default_factory=list)
    """What keeps the job from starting."""
    warnings: list[str] = field(default_factory=list)
    """What may keep it from starting."""
    unseen: dict[str, list[str]] = field(default_factory=dict)
    """What was not looked at, by the reason."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where a setting was set, such as `FILE:LINE`, by its dotted key."""
    read_remote: Callable[[str], Manifest] | None = None
    """Reads the manifest of a remote dataset; None where only the ranks read object storage."""

    def ask(self, check: Callable[[], T], *, prefix: str = "") -> T | None:
        """The result of `check`; None where it raises UserMistake or OSError, whose message is then a problem."""
        try:
            return check()
        except (UserMistake, OSError) as error:
            self.problems.append(f"{prefix}{error}")
            return None

    def named(self, setting: str) -> str:
        """A setting, or a section that names a dataset, and where its user set it."""
        origin = self.origins.get(setting) or self.origins.get(f"{setting}.dataset", DEFAULT)
        return setting if origin == DEFAULT else f"{setting} ({origin})"

    def leave(self, thing: str, reason: str) -> None:
        """Notes something that was not looked at."""
        self.unseen.setdefault(reason, []).append(thing)

    def local(self, setting: str, place: str) -> Path | None:
        """The path of an input that this host should see. None where it is at a URL, or may be on other hosts only.

        The hosts of `Reach.SHARED` may have an absolute path that is not here, but no relative one.
        """
        path, named = Path(place), f"{setting} = {without_credentials(place)}"
        if self.reach is Reach.NONE or (self.reach is Reach.SHARED and path.is_absolute() and not path.exists()):
            self.leave(named, self.why_unseen)
            return None
        if not is_remote(place):
            return path
        # The store's address and credentials are in the ranks' environment, not in this one.
        self.leave(named, "only the ranks read object storage")
        self.ask(lambda: refuse_credentials(place))
        self.ask(lambda: connect(place, RemoteSettings()), prefix=f"{named}: ")
        return None

    def lines(self) -> Iterator[str]:
        """The warnings and what was not looked at, a line each."""
        for warning in self.warnings:
            yield f"warning: {warning}"
        for reason, things in self.unseen.items():
            yield f"not looked at: {', '.join(things)}: {reason}"

    def require_none(self) -> None:
        """Raises InputError, which names all problems, where there are any."""
        if self.problems:
            count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            raise InputError(f"{count} before the start\n" + indent("\n".join(self.problems), "  "))
