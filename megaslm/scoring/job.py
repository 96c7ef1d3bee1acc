"""The `score` verb: the reference's loss of every target, computed once and stored beside the tokens."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaslm import __version__
from megaslm.config.schema import Precision, Split
from megaslm.data.dataset.layout import check_layout
from megaslm.data.dataset.manifest import (
    COST,
    MANIFEST,
    TOKENIZER,
    DomainSplit,
    Manifest,
    Part,
    Reference,
    read_manifest,
    write_manifest,
)
from megaslm.data.dataset.merged_index import merge_index
from megaslm.data.dataset.row_reader import RowReader
from megaslm.data.dataset.shards import RowFormat, part_writer
from megaslm.data.durable import write_file
from megaslm.engine.distributed import World, join_world, on_first_rank, wait_for_all
from megaslm.errors import DataError, NonFiniteLoss
from megaslm.model.fit import check_model_fits, check_tokenizer_fits
from megaslm.model.load import check_model_folder, load_pretrained, weights_sha256
from megaslm.model.precision import choose_precision, dtype_of
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.targets import valid_targets

_LARGEST_FLOAT16 = 65504.0
_ROWS_HASHED_AT_ONCE = 1024

OnProgress = Callable[[int, int], None]
"""Called on the first rank with the rows that it has scored and those that it has to score."""


@dataclass(frozen=True)
class ScoreSettings:
    """How the reference is run."""

    precision: Precision = "auto"
    document_isolation: bool = True
    batch_rows: int = 16
    """Rows per forward pass. Every pass has as many, so that a row's losses do not depend on the number of ranks."""
    entropy: bool = False
    """Whether `ref_entropy` is stored too: of the reference's predictions, from the pass that gives the losses."""


@dataclass(frozen=True)
class _PartToScore:
    split: Split
    domain: str
    part: Part


def score(
    reference: Path,
    dataset: Path,
    output: Path,
    settings: ScoreSettings = ScoreSettings(),
    *,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Writes `output`: the rows of `dataset`, in order, with `ref_loss` and, if asked, `ref_entropy`.

    Called by every rank. Parts are shared out over the ranks; those that an earlier attempt finished are not scored
    again.

    Raises:
        UserMistake: the reference does not fit the dataset, or `output` holds something else.
        NonFiniteLoss: the reference gives a loss or an entropy that is NaN or infinite.
    """
    world = join_world()
    started = time.monotonic()
    manifest, described = on_first_rank(lambda: _checked(reference, dataset, output, settings, world))
    if (output / MANIFEST).is_file():
        return read_manifest(output)
    job = _Job(dataset, output, manifest, described, settings, world)
    job.score_parts(_share(manifest, world, output), reference, on_progress)
    wait_for_all()
    seconds = time.monotonic() - started
    return on_first_rank(lambda: job.finish(reference, seconds))


def _checked(
    reference: Path, dataset: Path, output: Path, settings: ScoreSettings, world: World
) -> tuple[Manifest, Reference]:
    manifest = read_manifest(dataset)
    config = check_model_folder(reference)
    check_tokenizer_fits(reference, manifest, dataset=dataset)
    check_model_fits(config, manifest, model=str(reference), dataset=dataset)
    check_layout(dataset)
    described = Reference(
        name=reference.name,
        weights_sha256=weights_sha256(reference),
        precision=choose_precision(settings.precision, world.device),
        document_isolation=settings.document_isolation,
        window=manifest.seq_len,
        stride=manifest.seq_len,
        dataset_sha256=manifest.tokens_fingerprint(),
        entropy=settings.entropy,
    )
    _claim(output, described)
    return manifest, described


def _claim(output: Path, described: Reference) -> None:
    """Makes `output` this job's, or finds that it is."""
    if (output / MANIFEST).is_file():
        found = read_manifest(output).reference
        if found != described:
            raise DataError(
                f"{output}: holds a dataset scored otherwise ({found}); this job is {described}; choose another folder"
            )
        return
    claim = _unfinished(output) / "reference.json"
    if claim.is_file():
        begun = Reference.model_validate_json(claim.read_text(encoding="utf-8"))
        if begun != described:
            raise DataError(
                f"{output}: holds an unfinished dataset of another scoring job ({begun}); this job is {described}; "
                "choose another folder or remove it"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output}: is not empty and holds no unfinished scoring job; choose another folder")
    claim.parent.mkdir(parents=True, exist_ok=True)
    write_file(claim, described.model_dump_json())


def _unfinished(output: Path) -> Path:
    """What is known of an unfinished job; it goes when the manifest comes."""
    return output / ".score"


def _marker(output: Path, item: _PartToScore) -> Path:
    return _unfinished(output) / f"{item.split}--{item.domain}--{item.part.name}.json"


def _share(manifest: Manifest, world: World, output: Path) -> list[_PartToScore]:
    """This rank's unfinished parts: the largest first, each to the rank that has the fewest rows so far."""
    waiting = [item for item in _all_parts(manifest) if not _marker(output, item).is_file()]
    rows = [0] * world.size
    mine: list[_PartToScore] = []
    for item in sorted(waiting, key=lambda item: -item.part.rows):
        rank = rows.index(min(rows))
        rows[rank] += item.part.rows
        if rank == world.rank:
            mine.append(item)
    return mine


def _all_parts(manifest: Manifest) -> Iterator[_PartToScore]:
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            yield from (_PartToScore(split, domain, part) for part in share.parts)


class _Job:
    def __init__(
        self,
        dataset: Path,
        output: Path,
        manifest: Manifest,
        described: Reference,
        settings: ScoreSettings,
        world: World,
    ) -> None:
        self._dataset = dataset
        self._output = output
        self._manifest = manifest
        self._described = described
        self._settings = settings
        self._world = world
        self._format = RowFormat(manifest.seq_len, manifest.vocab_size, scored=True, entropy=settings.entropy)

    def score_parts(self, mine: list[_PartToScore], reference: Path, on_progress: OnProgress | None) -> None:
        """Scores this rank's parts."""
        precision = choose_precision(self._settings.precision, self._world.device)
        lm = load_pretrained(reference, dtype=dtype_of(precision)).to(self._world.device).eval()
        model = SelectiveLM(lm, eos_id=self._manifest.eos_id, document_isolation=self._settings.document_isolation)
        rows_done, rows_to_do = 0, sum(item.part.rows for item in mine)
        for item in mine:
            reader = RowReader(self._dataset, item.split, item.domain, item.part.name)
            self._check_tokens(reader, item)
            folder = self._output / item.split / item.domain / item.part.name
            with part_writer(folder, self._format) as writer:
                for start in range(0, len(reader), self._settings.batch_rows):
                    rows = reader.rows(start, min(len(reader), start + self._settings.batch_rows))
                    tokens = cast(NDArray[np.unsignedinteger], rows["tokens"])
                    place = f"{item.split}/{item.domain}/{item.part.name}"
                    losses, entropies = self._measure(model, tokens, place, start)
                    writer.write(tokens, int(rows["domain"][0]), losses, entropies)
                    rows_done += len(tokens)
                    if on_progress is not None and self._world.is_first:
                        on_progress(rows_done, rows_to_do)
            write_file(_marker(self._output, item), writer.part.model_dump_json())

    def _check_tokens(self, reader: RowReader, item: _PartToScore) -> None:
        """Before a model sees them: a damaged id may lie outside its vocabulary."""
        found = hashlib.sha256()
        for start in range(0, len(reader), _ROWS_HASHED_AT_ONCE):
            found.update(reader.rows(start, min(len(reader), start + _ROWS_HASHED_AT_ONCE))["tokens"].data)
        if found.hexdigest() != item.part.tokens_sha256:
            raise DataError(
                f"{self._dataset}/{item.split}/{item.domain}/{item.part.name}: its tokens have the hash "
                f"{found.hexdigest()[:12]}, its manifest says {item.part.tokens_sha256[:12]}; prepare it again"
            )

    def _measure(
        self, model: SelectiveLM, stored: NDArray[np.unsignedinteger], part: str, start: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
        """The losses of (n, L+1) tokens and, if asked, the entropies: (n, L) each, see `_as_stored`."""
        padding = np.repeat(stored[-1:], self._settings.batch_rows - len(stored), axis=0)
        tokens = torch.from_numpy(np.concatenate([stored, padding]).astype(np.int64)).to(self._world.device)
        valid = valid_targets(tokens, self._manifest.eos_id)[: len(stored)]
        if not self._settings.entropy:
            return _as_stored(model.measure(tokens), valid, "a loss", part, start), None
        losses, entropies = model.measure_with_entropy(tokens)
        return (
            _as_stored(losses, valid, "a loss", part, start),
            _as_stored(entropies, valid, "an entropy", part, start),
        )

    def finish(self, reference: Path, seconds: float) -> Manifest:
        """Joins the parts and declares the dataset finished."""
        parts = {
            (item.split, item.domain, item.part.name): Part.model_validate_json(
                _marker(self._output, item).read_text(encoding="utf-8")
            )
            for item in _all_parts(self._manifest)
        }
        splits: dict[Split, dict[str, DomainSplit]] = {}
        for split, domains in self._manifest.splits.items():
            splits[split] = {}
            for domain, share in domains.items():
                scored = tuple(parts[split, domain, part.name] for part in share.parts)
                merge_index(self._output / split / domain, scored)
                splits[split][domain] = share.model_copy(update={"parts": scored})
        shutil.copytree(self._dataset / TOKENIZER, self._output / TOKENIZER, dirs_exist_ok=True)
        manifest = self._manifest.model_copy(
            update={
                "kind": "scored",
                "splits": splits,
                "reference": self._described,
                "megaslm_version": __version__,
            }
        )
        self._write_cost(reference, seconds)
        write_manifest(self._output, manifest)
        shutil.rmtree(_unfinished(self._output))
        return manifest

    def _write_cost(self, reference: Path, seconds: float) -> None:
        gpus = self._world.size if self._world.device.type == "cuda" else 0
        cost = {"scoring": {"seconds": seconds, "ranks": self._world.size, "gpu_hours": seconds * gpus / 3600}}
        training = reference / "cost.json"
        if training.is_file():
            cost["reference_training"] = json.loads(training.read_text(encoding="utf-8"))["training"]
        write_file(self._output / COST, json.dumps(cost, indent=1) + "\n")


def _as_stored(nats: Tensor, valid: Tensor, what: str, part: str, start: int) -> NDArray[np.float16]:
    """(n, L) float16 of the first n rows' values: clamped to [0, 65504], and 0 where the target is not valid."""
    kept = nats[: len(valid)].where(valid, 0.0).cpu()
    if not torch.isfinite(kept).all():
        row = int((~torch.isfinite(kept)).any(1).nonzero()[0])
        raise NonFiniteLoss(f"{part}, row {start + row}: the reference gives {what} that is NaN or infinite")
    clamped: NDArray[np.float16] = kept.clamp(0.0, _LARGEST_FLOAT16).to(torch.float16).numpy()
    return clamped
