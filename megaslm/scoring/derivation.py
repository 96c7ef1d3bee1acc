"""A dataset that is derived from another one, part by part: the same rows in the same order, with other columns.

What is unfinished lies in a working folder, OUTPUT/.score for a local output: finished parts, and in `.derived` the
plan and a note of each of them. OUTPUT is not touched before all is done, so that a dataset to which parts are added
stays one until then.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from megaslm import __version__
from megaslm.config.schema import Split
from megaslm.dataset.manifest import TOKENIZER, DomainSplit, Manifest, Part
from megaslm.dataset.output import output_at
from megaslm.dataset.remote import DatasetFolder
from megaslm.errors import DataError
from megaslm.files import locked, read_back, write_file
from megaslm.jobs.ledger import Drawn, Ledger
from megaslm.jobs.progress import Tally
from megaslm.scoring.derivation_plan import DerivationPlan, SourcePart, require_rows, source_parts

_NOTES = ".derived"
_PLAN = "plan.json"
_LOOK_AGAIN_SECONDS = 1.0
# For processes that were killed and are not gone yet.
_PATIENCE_SECONDS = 10.0


class PartOutcome(BaseModel):
    """What is noted of a part that is done; subclasses have more to tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Part
    """As the manifest will list it."""


Outcome = TypeVar("Outcome", bound=PartOutcome)

KnownParts = Callable[[Manifest, Callable[[str], bytes | None]], Mapping[str, Outcome]]
"""Called with a finished dataset's manifest and a way to read what lies beside its rows; outcomes by part name."""


class Derivation(Generic[Outcome]):
    """The making of one derived dataset; every process that takes part has one."""

    def __init__(
        self,
        source: DatasetFolder,
        described: Manifest,
        output: str | Path,
        *,
        working: Path | None,
        working_name: str,
        outcome_type: type[Outcome],
        known_parts: KnownParts[Outcome],
    ) -> None:
        """Nothing is written yet.

        Args:
            source: what it is derived from.
            described: the manifest that it will have, but with the parts of its source.
            output: a folder or a URL.
            working: for a URL, the local folder for parts on their way there.
            working_name: for a folder, the folder within it in which the work is done.
            outcome_type: what is noted of a part; its field `part` is the part's record.
            known_parts: what was noted of the parts of a finished output, which is gone on with.
        """
        self.source = source
        self._described = described
        self._output, self.working = output_at(str(output), working, local_working=working_name)
        self._folder = Path(output) if working is None else None
        self.ledger = Ledger(self.working / _NOTES, outcome_type, place=self._output.place)
        self._known_parts = known_parts
        self._plan = DerivationPlan.of(described)

    @property
    def claim(self) -> Path:
        """The file whose lock the first process of a job holds while it works."""
        return self.ledger.folder / "lock"

    @property
    def at_work(self) -> Path:
        """The file on which every other process of a job holds a shared lock while it works."""
        return self.ledger.folder / "at-work.lock"

    def finished(self) -> Manifest | None:
        """The manifest of the output, where it is the dataset that would be made.

        Raises DataError where it is another one. One that lacks parts, because its source has grown, is not finished.
        """
        found = self._output.finished()
        if found is None:
            return None
        self._plan.require_continues(DerivationPlan.of(found), self._output.place)
        parts = {item.name: item.part for item in source_parts(found)}
        require_rows(self._sources, parts, self._output.place)
        if len(parts) < len(self._sources):
            return None
        self._tidy_up_after_a_kill(parts)
        return found

    def earlier(self) -> DerivationPlan | None:
        """The plan by which the work was begun or, where it is finished, done; null where neither is."""
        found = self._output.finished()
        return self._begun() if found is None else DerivationPlan.of(found)

    @contextmanager
    def claimed(self, *, alone: bool) -> Iterator[None]:
        """Claim the output, to begin or to go on: alone, or together with others who do other parts.

        Raises DataError where another process is at work there, or where anything else is there.
        """
        self._require_ours()
        self.ledger.folder.mkdir(parents=True, exist_ok=True)
        busy = f"{self._output.place}: another process is making this dataset; wait for it or stop it"
        with locked(self.claim, shared=not alone, busy=busy):
            if alone:
                # Ranks of a run whose first rank has died may still be at work, by other settings perhaps.
                with locked(self.at_work, patience_seconds=_PATIENCE_SECONDS, busy=busy):
                    pass
            with self.ledger.setting_up():
                self._begin(alone=alone)
            yield

    def parts(self) -> list[SourcePart]:
        """All parts, the largest first."""
        return sorted(self._sources.values(), key=lambda item: -item.part.rows)

    def is_done(self, item: SourcePart) -> bool:
        """Whether a part is done."""
        return self.ledger.is_done(item.name)

    def draw(self, item: SourcePart, make: Callable[[Path], Outcome], run_id: str, tally: Tally | None = None) -> Drawn:
        """Do a part as `Ledger.draw` does: `make` writes the folder that it gets, and gives what is to be noted."""

        def do() -> Outcome:
            outcome = make(self.working / item.path)
            if not item.has_rows_of(outcome.part):
                raise DataError(
                    f"{self.source.place}/{item.path}: its tokens have the hash {outcome.part.tokens_sha256[:12]}, its "
                    f"manifest says {item.part.tokens_sha256[:12]}; prepare it again"
                )
            self._output.keep_part(item.split, item.domain, outcome.part)
            return outcome

        return self.ledger.draw(item.name, do, run_id, tally)

    def outcomes(self, *, patience_seconds: float = 0.0) -> list[tuple[SourcePart, Outcome]]:
        """What was noted of every part, in the order of their rows.

        On a network file system what another host has noted is seen up to a minute later, which is what patience is
        for. Raises DataError where a part is not done.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            noted = [(item, self.ledger.outcome(name)) for name, item in self._sources.items()]
            if all(outcome is not None for _, outcome in noted) or time.monotonic() >= deadline:
                break
            time.sleep(_LOOK_AGAIN_SECONDS)
        missing = [str(item.path) for item, outcome in noted if outcome is None]
        if missing:
            shown = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
            raise DataError(
                f"{self._output.place}: {len(missing)} of {len(noted)} parts are not done ({shown}); start it again, "
                "with or without --part, for those that are missing"
            )
        return [(item, outcome) for item, outcome in noted if outcome is not None]

    def assemble(self, outcomes: Sequence[tuple[SourcePart, Outcome]], beside: Mapping[str, str]) -> Manifest:
        """Join what was done and declare the dataset finished.

        `outcomes` are those of all parts; `beside` is file name to content of what tells about the rows.
        """
        made = {item.name: outcome.part for item, outcome in outcomes}
        splits: dict[Split, dict[str, DomainSplit]] = {}
        for split, domains in self._described.splits.items():
            for domain, share in domains.items():
                parts = tuple(made[SourcePart(split, domain, part).name] for part in share.parts)
                splits.setdefault(split, {})[domain] = share.model_copy(update={"parts": parts})
        shutil.copytree(self.source.path / TOKENIZER, self.working / TOKENIZER, dirs_exist_ok=True)
        for name, content in beside.items():
            write_file(self.working / name, content)
        manifest = self._described.model_copy(update={"splits": splits, "megaslm_version": __version__})
        self._output.finish(manifest)
        self.tidy_up()
        return manifest

    @cached_property
    def _sources(self) -> dict[str, SourcePart]:
        return {item.name: item for item in source_parts(self._described)}

    def _require_ours(self) -> None:
        """Raise DataError where the folder that is worked in holds neither a dataset nor the beginnings of this one."""
        if self.ledger.folder.exists() or (self._folder is not None and self._output.finished() is not None):
            return
        folder = self._folder or self.working
        if folder.exists() and any(path != self.working for path in folder.iterdir()):
            raise DataError(f"{folder} is not empty and holds no dataset; choose another folder")

    def _begin(self, *, alone: bool) -> None:
        """Go on with what was begun by the same plan, or begin.

        Where nothing is done yet and no one else is at work, another plan may follow.
        """
        if alone:
            self.ledger.forget_runs()
        done = self.ledger.outcomes()
        begun = self._begun()
        # What is noted may lie deeper, of ranges of parts.
        if begun is not None and (not alone or any(self.ledger.folder.rglob("task-*.json"))):
            self._plan.require_continues(begun, self._output.place)
            require_rows(self._sources, {name: outcome.part for name, outcome in done.items()}, self._output.place)
        finished = self._output.finished()
        if finished is None:
            self._output.begin(self._plan.model_dump_json())
        else:
            self._output.extend(finished)
            for name, outcome in self._known_parts(finished, self._output.beside).items():
                if name not in done:
                    self.ledger.note(name, outcome)
        write_file(self.ledger.folder / _PLAN, self._plan.model_dump_json())

    def _begun(self) -> DerivationPlan | None:
        path = self.ledger.folder / _PLAN
        if not path.is_file():
            return None
        return read_back(
            DerivationPlan, path.read_bytes(), str(path), f"remove {self.ledger.folder} and start it again"
        )

    def _tidy_up_after_a_kill(self, finished: Mapping[str, Part]) -> None:
        """Where one came after the manifest; what a job notes that adds other parts is left alone."""
        if self.ledger.folder.is_dir():
            with suppress(DataError), locked(self.claim, busy="others are at work"):
                ranges = {path.stem.rsplit("--", 2)[0] for path in self.ledger.folder.glob("*/task-*.json")}
                if self.ledger.outcomes().keys() | {name.removeprefix("task-") for name in ranges} <= finished.keys():
                    self.tidy_up()

    def tidy_up(self) -> None:
        """Once the dataset is finished: remove what was needed to make it."""
        self._output.tidy_up()
        gone = self.ledger.folder.with_name(f"{_NOTES}-{uuid.uuid4().hex[:8]}")
        # At once: to whoever still looks, notes that vanish one by one would be tasks to be done.
        with suppress(FileNotFoundError):
            self.ledger.folder.rename(gone)
        for leftover in [gone] if self._folder is None else [gone, self.working]:
            shutil.rmtree(leftover, ignore_errors=True)
