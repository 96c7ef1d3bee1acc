"""Losses on held-out text over all valid targets. They are the same on any number of ranks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megaslm.config.measuring import ValidationSection, ValidationSet
from megaslm.dataset.fit import heldout_domains
from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.dataset.remote import DatasetFolder, open_dataset
from megaslm.engine.distributed import World, all_reduce_sum
from megaslm.engine.zero import ZeroEngine
from megaslm.observe.records import ValidationRecord
from megaslm.slm.valid_targets import valid_targets

ALL_DOMAINS = "all"
_BATCHES_BETWEEN_QUESTIONS = 8


@dataclass(frozen=True)
class _HeldOut:
    """This rank's rows of one domain of one set. `tokens`: (rows, L+1) int64. `counts`: (rows, L) bool, which targets
    count."""

    name: str
    domain: str
    tokens: Tensor
    counts: Tensor


class Validation:
    """The held-out sets of a run, read once."""

    def __init__(self, section: ValidationSection, world: World, training: Manifest, *, cache: str) -> None:
        """Reads this rank's rows. Rows of remote datasets are fetched into a folder of `cache`.

        Raises:
            DataError: a set is not a dataset, lacks a domain, or has another tokenizer, row length or place of BOS than
                the training data.
        """
        self._world = world
        self._batch_rows = section.batch_rows
        self._held_out = [
            _read(name, domain, chosen, dataset, world, training.eos_id)
            for name, chosen in section.sets.items()
            for dataset in [open_dataset(chosen.dataset, cache)]
            for domain in heldout_domains(name, chosen, read_manifest(dataset.path), training)
        ]

    def run(
        self, engine: ZeroEngine, *, step: int, tokens: int, is_to_stop: Callable[[], bool]
    ) -> list[ValidationRecord] | None:
        """Measures every set. Called on all ranks: each runs equally many batches.

        `is_to_stop` is called before every eighth batch and gives all ranks the same answer. If it is true, the result
        is None.
        """
        if not self._held_out:
            return []
        measured_sets = []
        with engine.evaluating():
            for held_out in self._held_out:
                total = self._measure(engine, held_out, is_to_stop)
                if total is None:
                    return None
                measured_sets.append(total)
        sums = torch.stack(measured_sets)
        totals: list[list[float]] = all_reduce_sum(sums).tolist()
        measured = {
            (held_out.name, held_out.domain): (loss_sum, targets)
            for held_out, (loss_sum, targets) in zip(self._held_out, totals, strict=True)
        }
        return [
            _record(name, domain, loss_sum, targets, step=step, tokens=tokens)
            for (name, domain), (loss_sum, targets) in _with_totals(measured).items()
        ]

    def _measure(self, engine: ZeroEngine, held_out: _HeldOut, is_to_stop: Callable[[], bool]) -> Tensor | None:
        """The sum of losses and the number of valid targets of this rank's rows, (2,) float64."""
        total = torch.zeros(2, dtype=torch.float64, device=self._world.device)
        batches = zip(held_out.tokens.split(self._batch_rows), held_out.counts.split(self._batch_rows), strict=True)
        for number, (tokens, counts) in enumerate(batches):
            if number % _BATCHES_BETWEEN_QUESTIONS == 0 and is_to_stop():
                return None
            tokens, counts = tokens.to(self._world.device), counts.to(self._world.device)
            losses = engine.measure(tokens).losses
            total += torch.stack([losses.double().where(counts, 0.0).sum(), counts.sum().double()])
        return total


def _read(name: str, domain: str, chosen: ValidationSet, dataset: DatasetFolder, world: World, eos_id: int) -> _HeldOut:
    reader = dataset.reader(chosen.split, domain)
    count = min(len(reader), chosen.max_rows or len(reader))
    rows = np.linspace(0, len(reader), count, endpoint=False, dtype=np.int64)
    # Ranks need equally many rows, or ZeRO-3 would wait for ever. Padding repeats the last row and does not count.
    per_rank = math.ceil(count / world.size)
    places = np.arange(world.rank * per_rank, (world.rank + 1) * per_rank)
    mine = rows[np.minimum(places, count - 1)]
    read = [reader[int(row)] for row in mine]
    tokens = np.stack([row["tokens"] for row in read]).astype(np.int64)
    target_mask = np.stack([row["target_mask"] for row in read]) if "target_mask" in read[0] else None
    counts = valid_targets(tokens, eos_id, target_mask) & (places < count)[:, None]
    return _HeldOut(name, domain, torch.from_numpy(tokens), torch.from_numpy(counts))


def _with_totals(measured: Mapping[tuple[str, str], tuple[float, float]]) -> dict[tuple[str, str], tuple[float, float]]:
    """The sums of each domain and, for a set of several domains, their total after them."""
    complete: dict[tuple[str, str], tuple[float, float]] = {}
    for name in dict.fromkeys(name for name, _ in measured):
        domains = {key: sums for key, sums in measured.items() if key[0] == name}
        complete |= domains
        if len(domains) > 1:
            losses, targets = zip(*domains.values(), strict=True)
            complete[name, ALL_DOMAINS] = (sum(losses), sum(targets))
    return complete


def _record(name: str, domain: str, loss_sum: float, targets: float, *, step: int, tokens: int) -> ValidationRecord:
    loss = loss_sum / max(1.0, targets)
    return ValidationRecord(
        step=step,
        tokens=tokens,
        name=name,
        domain=domain,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        targets=int(targets),
    )
