"""A dataset derived from another one, part by part: the same rows in the same order, with other columns.

Unfinished work is in a working folder, OUTPUT/.score for a local output. The folder holds the finished parts and, in
`.derived`, the plan and a note of each part. OUTPUT changes only when all is done, so that a dataset to which parts are
added stays readable until then.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from megaslm import __version__
from megaslm.config.section import Split
from megaslm.dataset.manifest import COST, SCORES, TOKENIZER, DomainSplit, Manifest, Part
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


class PartOutcome(BaseModel):
    """The note of a finished part. Subclasses add fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Part
    """The part's record in the manifest."""


Outcome = TypeVar("Outcome", bound=PartOutcome)

KnownParts = Callable[[Manifest, Callable[[str], bytes | None]], Mapping[str, Outcome]]
"""Called with a finished dataset's manifest and a reader of files beside its rows. Returns outcomes by part name."""


class Derivation(Generic[Outcome]):
    """One derived dataset in the making. Every process that takes part has an instance."""

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
        """Writes nothing yet.

        Args:
            source: the dataset that it is derived from.
            described: the manifest that it will have, but with the parts of its source.
            output: a folder or a URL.
            working: for a URL, the local folder for parts before they are sent.
            working_name: for a folder, the name of the working folder inside it.
            outcome_type: the type of a part's note; its field `part` is the part's record.
            known_parts: reads the notes of the parts of a finished output, to which parts are added.
        """
        self.source = source
        self._described = described
        self._output, self.working = output_at(str(output), working, local_working=working_name)
        self._folder = Path(output) if working is None else None
        self.ledger = Ledger(self.working / _NOTES, outcome_type, place=self._output.place)
        self._known_parts = known_parts
        self._plan = DerivationPlan.of(described)

    def finished(self) -> Manifest | None:
        """The manifest of the output if it is the finished dataset, else None.

        An output that lacks parts, because its source has grown, is not finished. Raises DataError where the output is
        another dataset.
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

    def beside(self, name: str) -> bytes | None:
        """A file beside the rows of the finished output. None without it, or while there is no finished output."""
        return None if self._output.finished() is None else self._output.beside(name)

    def beside_source(self) -> dict[str, str]:
        """The files beside the rows of the source that tell how these were scored, by name."""
        paths = [self.source.path / name for name in (COST, SCORES)]
        return {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}

    def earlier(self) -> DerivationPlan | None:
        """The plan of the unfinished or finished output, None if there is neither."""
        found = self._output.finished()
        return self._begun() if found is None else DerivationPlan.of(found)

    @contextmanager
    def claimed(self, *, alone: bool) -> Iterator[None]:
        """Claim the output, to start or to resume: alone, or together with processes that do other parts.

        Raises DataError where another process works there, or where the output holds anything else.
        """
        self._require_ours()
        busy = f"{self._output.place}: another process is making this dataset; wait for it or stop it"
        with self.ledger.claimed(alone=alone, busy=busy):
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
        """Do a part as `Ledger.draw` does. `make` writes the given folder and returns the part's note."""

        def do() -> Outcome:
            outcome = make(self.working / item.path)
            if not item.has_rows_of(outcome.part):
                raise DataError(
                    f"{self.source.place}/{item.path}: its tokens have the hash {_short(outcome.part)}, but its "
                    f"manifest says {_short(item.part)}; prepare it again"
                )
            self._output.keep_part(item.split, item.domain, outcome.part)
            return outcome

        return self.ledger.draw(item.name, do, run_id, tally)

    def outcomes(self, *, patience_seconds: float = 0.0) -> list[tuple[SourcePart, Outcome]]:
        """The note of every part, in the order of their rows.

        On a network file system a note of another host may appear up to a minute late: `patience_seconds` waits for it.
        Raises DataError where a part is not done.
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
                "with or without --share, for those that are missing"
            )
        return [(item, outcome) for item, outcome in noted if outcome is not None]

    def assemble(
        self,
        outcomes: Sequence[tuple[SourcePart, Outcome]],
        beside: Mapping[str, str],
        described: Manifest | None = None,
    ) -> Manifest:
        """Join the parts and finish the dataset.

        `outcomes` are those of all parts. `beside` maps the names of the files beside the rows to their content.
        `described` is the manifest of the same plan with counts that were not known at the start; None: as it was.
        """
        described = described or self._described
        made = {item.name: outcome.part for item, outcome in outcomes}
        splits: dict[Split, dict[str, DomainSplit]] = {}
        for split, domains in described.splits.items():
            for domain, share in domains.items():
                parts = tuple(made[SourcePart(split, domain, part).name] for part in share.parts)
                splits.setdefault(split, {})[domain] = share.model_copy(update={"parts": parts})
        shutil.copytree(self.source.path / TOKENIZER, self.working / TOKENIZER, dirs_exist_ok=True)
        for name, content in beside.items():
            write_file(self.working / name, content)
        manifest = described.model_copy(update={"splits": splits, "megaslm_version": __version__})
        self._output.finish(manifest)
        self.tidy_up()
        return manifest

    @cached_property
    def _sources(self) -> dict[str, SourcePart]:
        return {item.name: item for item in source_parts(self._described)}

    def _require_ours(self) -> None:
        """Raise DataError where the folder holds files, but neither a dataset nor unfinished work of this one."""
        if self.ledger.folder.exists() or (self._folder is not None and self._output.finished() is not None):
            return
        folder = self._folder or self.working
        if folder.exists() and any(path != self.working for path in folder.iterdir()):
            raise DataError(f"{folder} is not empty and holds no dataset; choose another folder")

    def _begin(self, *, alone: bool) -> None:
        """Resume the work of the same plan, or start.

        Another plan may replace it if nothing is done yet and no other process works here.
        """
        done = self.ledger.outcomes()
        begun = self._begun()
        # Notes of ranges of parts are in subfolders.
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
        """Tidies up if a kill came after the manifest. Notes of a job that adds other parts are kept."""
        if self.ledger.folder.is_dir():
            with suppress(DataError), locked(self.ledger.claim, busy="others are at work"):
                ranges = {path.stem.rsplit("--", 2)[0] for path in self.ledger.folder.glob("*/task-*.json")}
                if self.ledger.outcomes().keys() | {name.removeprefix("task-") for name in ranges} <= finished.keys():
                    self.tidy_up()

    def tidy_up(self) -> None:
        """Remove the working files of the finished dataset."""
        self._output.tidy_up()
        self.ledger.remove()
        if self._folder is not None:
            shutil.rmtree(self.working, ignore_errors=True)


def _short(part: Part) -> str:
    return " ".join(sha256[:12] for sha256 in part.hashes)
