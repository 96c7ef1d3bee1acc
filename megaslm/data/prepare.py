"""Text files to a dataset: packed rows of tokens in shards, with a manifest."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from megaslm import __version__
from megaslm.config.recipe import Recipe
from megaslm.config.schema import Split
from megaslm.data.documents import sha256_of_file
from megaslm.data.manifest import MANIFEST, TOKENIZER, DomainSplit, Manifest, read_manifest, write_manifest
from megaslm.data.prepare_task import Job, TaskOutcome, run_task
from megaslm.data.python_stdlib import absent_packages
from megaslm.data.shards import merge_index
from megaslm.data.tasks import Task, files_sha256, plan_tasks, recipe_sha256
from megaslm.data.tokenizer import TokenizerFacts, tokenizer_facts
from megaslm.data.tokenizer_origin import make_tokenizer
from megaslm.data.workplace import Plan, Workplace, claimed
from megaslm.errors import DataError, MegaSLMError

OnProgress = Callable[[int, int, int, int], None]
"""Called with tasks done, tasks in all, bytes of text read and targets written."""

_SPLITS: tuple[Split, ...] = ("train", "heldout")


def prepare(
    recipe: Recipe, output: Path, *, workers: int | None = None, on_progress: OnProgress | None = None
) -> Manifest:
    """Make the dataset of a recipe in `output`, and give its manifest.

    The dataset is the same, byte for byte, for any number of `workers` (null: one a core). A run
    that was interrupted goes on where it stopped; a finished dataset of the same recipe and files is left as it is.
    With more than one worker, a script that calls this needs the usual `if __name__ == "__main__":`.

    Raises DataError for text, tokenizers and folders that do not serve, naming file and line.
    """
    tasks = plan_tasks(recipe)
    if (output / MANIFEST).exists():
        return _finished(recipe, tasks, output)
    plan = Plan(recipe_sha256=recipe_sha256(recipe), files_sha256=files_sha256(tasks))
    with claimed(output, plan) as workplace:
        if not (output / TOKENIZER).is_dir():
            make_tokenizer(recipe, tasks, output / TOKENIZER)
        facts = tokenizer_facts(output / TOKENIZER)
        jobs = [Job(task, recipe, facts, output / TOKENIZER, output) for task in tasks]
        outcomes = _run_all(jobs, workplace, workers or os.cpu_count() or 1, on_progress)
        manifest = _manifest(recipe, facts, outcomes)
        _require_enough(recipe, manifest)
        _merge(output, manifest)
        write_manifest(output, manifest)
        workplace.remove()
    return manifest


def _finished(recipe: Recipe, tasks: Sequence[Task], output: Path) -> Manifest:
    """The manifest of a dataset that is there already, if it is this recipe's and its files are what they were."""
    manifest = read_manifest(output)
    if manifest.recipe_sha256 != recipe_sha256(recipe) or manifest.kind != "tokens":
        raise DataError(
            f"{output} holds the finished dataset {manifest.name!r} of another recipe; "
            "remove it or choose another output folder"
        )
    written = (output / MANIFEST).stat().st_mtime_ns
    recorded = {source.path: source for source in manifest.sources}
    for file in (file for task in tasks for file in task.files if file.label not in manifest.skipped):
        record = recorded.pop(file.label, None)
        changed = record is None or record.bytes != file.bytes
        # Only a file that was written since can differ at equal size: to hash them all would take as long as a run.
        if changed or (record and file.modified_nanoseconds > written and sha256_of_file(file.path) != record.sha256):
            raise DataError(f"{file.label} has changed since {output} was prepared; remove it or choose another output")
    if recorded:
        raise DataError(f"{next(iter(recorded))} is gone since {output} was prepared; choose another output")
    return manifest


def _run_all(
    jobs: Sequence[Job], workplace: Workplace, workers: int, on_progress: OnProgress | None
) -> list[TaskOutcome]:
    """The outcomes of all jobs in their order; those of an earlier run are taken as they are."""
    outcomes = {job.task.number: workplace.outcome(job.task.number) for job in jobs}
    done = {number: outcome for number, outcome in outcomes.items() if outcome is not None}
    waiting = [job for job in jobs if job.task.number not in done]
    for number, outcome in _run_each(waiting, min(workers, len(waiting))):
        workplace.keep(number, outcome)
        done[number] = outcome
        if on_progress is not None:
            text_bytes = sum(each.text_bytes for each in done.values())
            on_progress(len(done), len(jobs), text_bytes, sum(each.tokens for each in done.values()))
    return [done[job.task.number] for job in jobs]


def _run_each(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, TaskOutcome]]:
    """Each job's task number and outcome, as they come."""
    if workers <= 1:
        for job in jobs:
            yield job.task.number, run_task(job)
        return
    # spawn: a forked child would inherit the threads of torch and tokenizers in whatever state they are in.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_be_one_of_many)
    try:
        futures = {pool.submit(run_task, job): job.task.number for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise MegaSLMError(
            "a worker process of prepare died: out of memory, killed, or started from a script without "
            '`if __name__ == "__main__":`; run again with fewer workers, what is done is kept'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _be_one_of_many() -> None:
    """The processes share the cores among them; threads of their own would only contend."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _manifest(recipe: Recipe, facts: TokenizerFacts, outcomes: Sequence[TaskOutcome]) -> Manifest:
    licences = {
        domain: [recipe.licence_of(source) or "" for source in recipe.sources if source.domain == domain]
        for domain in recipe.domains
    }
    reads_standard_library = any(source.reads_standard_library for source in recipe.sources)
    sources = {source.path: source for outcome in outcomes for source in outcome.sources}
    return Manifest(
        kind="tokens",
        name=recipe.name,
        megaslm_version=__version__,
        recipe_sha256=recipe_sha256(recipe),
        seq_len=recipe.seq_len,
        vocab_size=facts.vocab_size,
        tokenizer_sha256=facts.sha256,
        eos_id=facts.eos_id,
        bos_id=facts.bos_id,
        domains=recipe.domains,
        licences={domain: "; ".join(dict.fromkeys(each)) for domain, each in licences.items()},
        splits=_splits(recipe, outcomes),
        sources=tuple(sources.values()),
        skipped=tuple(dict.fromkeys(name for outcome in outcomes for name in outcome.skipped)),
        absent=tuple(absent_packages()) if reads_standard_library else (),
    )


def _splits(recipe: Recipe, outcomes: Sequence[TaskOutcome]) -> dict[Split, dict[str, DomainSplit]]:
    splits: dict[Split, dict[str, DomainSplit]] = {}
    for split in _SPLITS:
        for domain in recipe.domains:
            written = [each.parts[split] for each in outcomes if each.domain == domain and split in each.parts]
            if written:
                splits.setdefault(split, {})[domain] = DomainSplit(
                    rows=sum(each.part.rows for each in written),
                    tokens=sum(each.tokens for each in written),
                    documents=sum(each.documents for each in written),
                    parts=tuple(each.part for each in written),
                )
    return splits


def _require_enough(recipe: Recipe, manifest: Manifest) -> None:
    train = manifest.splits.get("train", {})
    for domain in manifest.domains:
        if domain not in train:
            raise DataError(
                f"recipe {recipe.name}: domain {domain} has no text to train on; "
                "look at its paths, keep_fraction and heldout_fraction"
            )
    tokens = sum(share.tokens for share in train.values())
    if tokens < recipe.seq_len:
        raise DataError(
            f"recipe {recipe.name}: the text to train on has {tokens} targets, less than one row of "
            f"seq_len = {recipe.seq_len}; add text or lower seq_len"
        )


def _merge(output: Path, manifest: Manifest) -> None:
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            folder = output / split / domain
            rows = merge_index(folder, [part.name for part in share.parts])
            if rows != share.rows:
                raise DataError(f"{folder} has {rows} rows, its tasks wrote {share.rows}; remove it and prepare again")
