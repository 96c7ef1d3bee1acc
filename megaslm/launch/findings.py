"""What a dry run found: problems, warnings, and what cannot be seen from this host."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from textwrap import indent
from typing import TypeVar

from megaslm.config.load import DEFAULT
from megaslm.config.section import refuse_credentials, without_credentials
from megaslm.dataset.manifest import Manifest
from megaslm.errors import InputError, UserMistake
from megaslm.files import relative_to_here
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
    """What keeps the job from starting, and another job or another host may mend."""
    mistakes: list[str] = field(default_factory=list)
    """What keeps the job from starting anywhere."""
    warnings: list[str] = field(default_factory=list)
    """What may keep it from starting."""
    unseen: dict[str, list[str]] = field(default_factory=dict)
    """What was not looked at, by the reason."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where a setting was set, such as `FILE:LINE`, by its dotted key."""
    read_remote: Callable[[str], Manifest] | None = None
    """Reads the manifest of a remote dataset; None where only the ranks read object storage."""
    _looked_here: bool = False
    """Whether a relative path of a problem leads to nothing."""
    _elsewhere: Path | None = None
    """The folder from which the first input that is missing here would be found; None where there is none."""

    def ask(self, check: Callable[[], T], *, prefix: str = "", is_setting: bool = False) -> T | None:
        """The result of `check`; None where it raises UserMistake or OSError, whose message is then a problem.

        `is_setting`: it looks at the settings alone, and what it finds is a mistake.
        """
        try:
            return check()
        except (UserMistake, OSError) as error:
            self.add(f"{prefix}{error}", is_setting=is_setting)
            return None

    def add(self, problem: str, *, is_setting: bool = False) -> None:
        """Notes a problem. Where its relative path begins is left to `hints`, which say that once for all problems."""
        here = relative_to_here()
        self._looked_here |= here in problem
        (self.mistakes if is_setting else self.problems).append(problem.replace(here, ""))

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
            self._look_elsewhere(path)
            return path
        # The store's address and credentials are in the ranks' environment, not in this one.
        self.leave(named, "only the ranks read object storage")
        self.ask(lambda: refuse_credentials(place))
        self.ask(lambda: connect(place, RemoteSettings()), prefix=f"{named}: ")
        return None

    def _look_elsewhere(self, path: Path) -> None:
        """Looks for an input that is missing in the folders above the current one, and above the user's files."""
        if self._elsewhere is not None or path.is_absolute() or path.exists():
            return
        files = {origin.rpartition(":")[0] for origin in self.origins.values()} - {""}
        above = (folder for place in (".", *sorted(files)) for folder in Path(place).absolute().parents)
        self._elsewhere = next((folder for folder in above if (folder / path).exists()), None)

    def lines(self, *, with_unseen: bool = True) -> Iterator[str]:
        """The warnings and, if asked for, what was not looked at, a line each."""
        for warning in self.warnings:
            yield f"warning: {warning}"
        for reason, things in self.unseen.items() if with_unseen else ():
            yield f"not looked at: {', '.join(things)}: {reason}"

    def require_none(self, otherwise: str = "") -> None:
        """Raises InputError, which names all problems, where there are any. `otherwise` ends its message."""
        if self.mistakes or self.problems:
            told = "".join([_told([*self.mistakes, *self.problems]), *(f"\n  {hint}" for hint in self.hints())])
            raise InputError(told + ("" if self.mistakes else otherwise))

    def hints(self) -> list[str]:
        """What to do about several problems at once."""
        if not self._looked_here and self._elsewhere is None:
            return []
        way_out = "" if self._elsewhere is None else f"; run the command in {self._elsewhere}"
        return [f"relative paths begin in the current folder, {Path.cwd()}{way_out}"]

    def accept(self, option: str) -> None:
        """Makes a warning of all problems, which `option` accepts."""
        if self.problems:
            self.warnings.append(f"accepted by {option}: {_told(self.problems)}")
            self.problems.clear()


def _told(problems: Sequence[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count} before the start\n" + indent("\n".join(problems), "  ")
