"""The manifest of a recipe and its tasks, and the check whether a finished dataset belongs to them."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from megaslm import __version__
from megaslm.config.recipe import Recipe
from megaslm.config.section import Split, home_expanded
from megaslm.corpus.python_stdlib import absent_packages
from megaslm.corpus.tasks import Task, recipe_sha256
from megaslm.dataset.folder import tokenizer_files
from megaslm.dataset.manifest import TOKENIZER, DomainSplit, Manifest, Packing, SourceFile
from megaslm.errors import DataError
from megaslm.files import Busy, locked, read_back, write_file
from megaslm.jobs.ledger import Ledger
from megaslm.preparing.chat_template import TEMPLATE_FILES
from megaslm.preparing.inputs import Inputs, has_changed
from megaslm.preparing.prepare_task import TaskOutcome
from megaslm.tokenizer.tokenizer import TokenizerFacts, tokenizer_facts

_SPLITS: tuple[Split, ...] = ("train", "heldout")
_FOLDER = ".prepare"
_PLAN = "plan.json"
_OURS = (TOKENIZER, "train", "heldout")


def require_same(manifest: Manifest, recipe: Recipe, tasks: Sequence[Task], place: str, inputs: Inputs) -> None:
    """Raise DataError unless a finished dataset belongs to the recipe and to the files as they are now.

    `inputs` is the state of the files when they were read. Files with another state now are read once more.
    """
    if manifest.recipe_sha256 != recipe_sha256(recipe) or manifest.kind != "tokens":
        raise DataError(
            f"{place} holds the finished dataset {manifest.name!r} of another recipe; remove it or choose another "
            "output"
        )
    recorded = {(source.path, source.start): source for source in manifest.sources}
    # Several sources of a recipe may read one file.
    ranges = {(file_range.file.label, file_range.start): file_range for task in tasks for file_range in task.ranges}
    for key, file_range in ranges.items():
        record = recorded.pop(key, None)
        if record is None and file_range.file.label not in manifest.skipped:
            raise DataError(
                f"{file_range.file.label} is new since {place} was prepared; remove {place} or choose another output"
            )
        if has_changed(file_range, record, inputs):
            raise DataError(
                f"{file_range.file.label} has changed since {place} was prepared; remove it or choose another output"
            )
    _require_same_tokenizer(manifest, recipe, place)
    _require_same_template(manifest, recipe, place)
    for gone, _ in recorded:
        raise DataError(
            f"{gone} is gone since {place} was prepared, or the recipe's paths no longer lead to it; remove {place} or "
            "choose another output"
        )


def _require_same_tokenizer(manifest: Manifest, recipe: Recipe, place: str) -> None:
    """Raises DataError where the recipe's tokenizer folder now holds another tokenizer than the dataset's."""
    if recipe.tokenizer.huggingface is None or manifest.ids_sha256 is None:
        return
    folder = home_expanded(recipe.tokenizer.huggingface)
    facts = tokenizer_facts(folder)
    if facts.ids_sha256 != manifest.ids_sha256 or manifest.bos_in_rows not in (None, facts.bos_id):
        raise DataError(
            f"tokenizer.huggingface: {folder} gives other ids than when {place} was prepared; remove {place} or choose "
            "another output"
        )


def _require_same_template(manifest: Manifest, recipe: Recipe, place: str) -> None:
    """Raises DataError where a file of the recipe's tokenizer that may hold its chat template is another one now."""
    folder = recipe.tokenizer.huggingface
    if folder is None or all(source.chat_format != "tokenizer" for source in recipe.sources):
        return
    now = tokenizer_files(home_expanded(folder))
    for name in TEMPLATE_FILES:
        if now.get(name) != manifest.tokenizer_files.get(name):
            raise DataError(
                f"{folder}/{name}, which may hold the chat template, has changed since {place} was prepared; remove "
                f"{place} or choose another output"
            )


def manifest_of(
    recipe: Recipe,
    outcomes: Sequence[TaskOutcome],
    tokenizer: Path,
    facts: TokenizerFacts,
    passed_over: Mapping[str, int],
) -> Manifest:
    """The manifest for the outcomes of all tasks, with the tokenizer in the folder `tokenizer`."""
    reads_standard_library = any(source.reads_standard_library for source in recipe.sources)
    return Manifest(
        kind="tokens",
        name=recipe.name,
        megaslm_version=__version__,
        recipe_sha256=recipe_sha256(recipe),
        seq_len=recipe.seq_len,
        vocab_size=facts.vocab_size,
        tokenizer_sha256=facts.sha256,
        ids_sha256=facts.ids_sha256,
        tokenizer_files=tokenizer_files(tokenizer),
        eos_id=facts.eos_id,
        bos_id=facts.bos_id,
        packing=Packing.with_bos(recipe.bos),
        target_mask=recipe.has_target_mask,
        domains=recipe.domains,
        licences=_licences(recipe),
        splits=_splits(recipe, outcomes),
        sources=_each_once(source for outcome in outcomes for source in outcome.sources),
        hub=tuple(dict.fromkeys(source.hub for source in recipe.sources if source.hub is not None)),
        skipped=tuple(dict.fromkeys(name for outcome in outcomes for name in outcome.skipped)),
        left_out=dict(sorted(sum((Counter(outcome.left_out) for outcome in outcomes), Counter()).items())),
        passed_over=dict(sorted(passed_over.items())),
        absent=tuple(absent_packages()) if reads_standard_library else (),
    )


def _licences(recipe: Recipe) -> dict[str, str]:
    licences: dict[str, dict[str, None]] = {domain: {} for domain in recipe.domains}
    for source in recipe.sources:
        for domain in source.domain_names:
            licences[domain][recipe.licence_of(source) or ""] = None
    return {domain: "; ".join(found) for domain, found in licences.items()}


def _each_once(sources: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """Lists once a stretch that several sources of the recipe read."""
    return tuple({(source.path, source.start): source for source in sources}.values())


def _splits(recipe: Recipe, outcomes: Sequence[TaskOutcome]) -> dict[Split, dict[str, DomainSplit]]:
    splits: dict[Split, dict[str, DomainSplit]] = {}
    written = [part for outcome in outcomes for part in outcome.parts]
    for split in _SPLITS:
        for domain in recipe.domains:
            parts = [part for part in written if (part.split, part.domain) == (split, domain)]
            if parts:
                splits.setdefault(split, {})[domain] = DomainSplit(
                    rows=sum(each.part.rows for each in parts),
                    tokens=sum(each.tokens for each in parts),
                    documents=sum(each.documents for each in parts),
                    parts=tuple(each.part for each in parts),
                )
    return splits


def require_enough(recipe: Recipe, manifest: Manifest) -> None:
    """Raise DataError where a domain has no training text, or all domains together have less than one row."""
    train = manifest.splits.get("train", {})
    for domain in manifest.domains:
        if domain not in train:
            raise DataError(
                f"recipe {recipe.name}: domain {domain} has no text to train on; "
                "check its paths, keep_fraction, filters and heldout_fraction"
            )
    tokens = sum(share.tokens for share in train.values())
    if tokens < recipe.seq_len:
        raise DataError(
            f"recipe {recipe.name}: the text to train on has {tokens} targets, less than one row of "
            f"seq_len = {recipe.seq_len}; add text or lower seq_len"
        )


class PreparePlan(BaseModel):
    """The identity of the dataset in the making."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe_sha256: str
    """Fingerprint of the recipe."""
    files_sha256: str
    """Fingerprint of the files' names, sizes and versions."""


class PrepareLedger(Ledger[TaskOutcome]):
    """The ledger of an output folder in which a dataset is being made."""

    def __init__(self, output: Path) -> None:
        super().__init__(output / _FOLDER, TaskOutcome, place=str(output))
        self._output = output

    def begin(self, plan: PreparePlan, tasks: Sequence[Task], *, alone: bool) -> None:
        """Resume the same plan. If `alone`, start over where the files have changed since, or where an earlier recipe
        has not finished any task."""
        found = self._begun()
        if found is not None:
            # A share leaves this check to `finish`, so that the files are not read again for every share.
            if found == plan and not (alone and any(map(self._has_changed, tasks))):
                return
            if found.recipe_sha256 != plan.recipe_sha256 and (self.has_outcomes() or not alone):
                raise DataError(
                    f"{self._output} holds the unfinished dataset of another recipe (tasks done: "
                    f"{len(self.outcomes()):,}); run that recipe again to finish it, or, for this one, choose another "
                    f"output folder or remove {self._output}"
                )
            if not alone:
                raise DataError(
                    f"{self._output}: the input files have changed since its first part was prepared; "
                    "remove it and prepare all parts again"
                )
            self._clear()
        write_file(self.folder / _PLAN, plan.model_dump_json())

    def require_ours(self) -> None:
        """Raise DataError where the output holds anything but unfinished work."""
        if self._output.exists() and not self.folder.exists() and any(self._output.iterdir()):
            raise DataError(f"{self._output} is not empty and holds no unfinished dataset; choose another folder")

    def give_way(self, plan: PreparePlan) -> None:
        """Forget another plan that was begun here, unless a task of it is done or another process works here.

        A share calls it before it claims the folder together with others: a recipe may be corrected after a mistake.
        """
        with suppress(Busy, FileNotFoundError), locked(self.claim, busy=f"{self._output} is in use"):
            if self._begun() not in (None, plan) and not self.has_outcomes():
                self._clear()
                self.forget_plan()

    def forget_plan(self) -> None:
        """Forget the plan, of which nothing has been done."""
        (self.folder / _PLAN).unlink(missing_ok=True)

    def _begun(self) -> PreparePlan | None:
        path = self.folder / _PLAN
        if not path.is_file():
            return None
        return read_back(PreparePlan, path.read_bytes(), str(path), f"remove {self._output} and prepare it again")

    def _has_changed(self, task: Task) -> bool:
        outcome = self.outcome(task.name)
        if outcome is None:
            return False
        recorded = {(source.path, source.start): source for source in outcome.sources}
        return any(
            has_changed(each, recorded.get((each.file.label, each.start)), outcome.inputs) for each in task.ranges
        )

    def _clear(self) -> None:
        self.forget_all()
        for name in _OURS:
            shutil.rmtree(self._output / name, ignore_errors=True)
