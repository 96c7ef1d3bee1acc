"""Weights of domains from stored losses, for `data.streams`: DoReMi's update (arXiv 2305.10429), made once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from megaslm.config.expression import OF_MODEL, Expression, expression_of
from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import ConfigError, DataError
from megaslm.slm.criterion import Formula
from megaslm.slm.valid_targets import valid_targets

SMOOTHING = 1e-3
"""Each domain keeps this share of an equal weight, as in the paper."""
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class DomainWeight:
    """A domain of the `train` split. `share`: of all valid targets. `mean`: of the expression's values over its valid
    targets. `weight`: its share of the rows of a mixture; the weights of all domains add up to 1."""

    domain: str
    targets: int
    share: float
    mean: float
    weight: float


def domain_weights(dataset: Path, text: str, rate: float) -> tuple[DomainWeight, ...]:
    """Weights in proportion to share · exp(rate · mean), then smoothed.

    DoReMi makes this update at each step of a proxy model, with the mean of max(own loss − reference loss, 0), and
    averages the weights. Here the losses of the proxy are stored, so there is one update.

    Args:
        dataset: the folder.
        text: an expression over columns of the dataset, as in `slm.criterion`.
        rate: of the update.

    Raises:
        ConfigError: no expression, or one that names what the dataset has not.
        DataError: the folder is no dataset, or a value is NaN or infinite.
    """
    manifest = read_manifest(dataset)
    formula = Formula(_expression(text, manifest, dataset).terms)
    found = [(domain, *_sum_of(dataset, domain, manifest, formula)) for domain in manifest.splits.get("train", {})]
    for domain, _, total in found:
        if not np.isfinite(total):
            raise DataError(f"{dataset}, train/{domain}: {text} is NaN or infinite at a target; expected finite values")
    all_targets = sum(targets for _, targets, _ in found)
    means = np.array([total / max(1, targets) for _, targets, total in found])
    shares = np.array([targets / max(1, all_targets) for _, targets, _ in found])
    weights = shares * np.exp(rate * (means - means.max(initial=0.0)))
    weights = (1 - SMOOTHING) * weights / weights.sum() + SMOOTHING / len(found)
    return tuple(
        DomainWeight(domain, targets, float(share), float(mean), float(weight))
        for (domain, targets, _), share, mean, weight in zip(found, shares, means, weights, strict=True)
    )


def show_weights(console: Console, dataset: Path, weights: tuple[DomainWeight, ...]) -> None:
    """Prints the weights, and the lines of a run's configuration that set them."""
    table = Table("domain", "targets", "share", "mean value", "weight", box=None)
    for one in weights:
        table.add_row(one.domain, f"{one.targets:,}", f"{one.share:.4f}", f"{one.mean:.4f}", f"{one.weight:.4f}")
    console.print(table)
    console.print("\n".join(_lines(dataset, weights)), markup=False, soft_wrap=True)


def _lines(dataset: Path, weights: tuple[DomainWeight, ...]) -> Iterator[str]:
    yield "data:"
    yield "  streams:"
    for number, one in enumerate(weights):
        yield f"    domain-{number}: {{dataset: {str(dataset)!r}, domains: [{one.domain!r}], weight: {one.weight:.6f}}}"


def _expression(text: str, manifest: Manifest, dataset: Path) -> Expression:
    try:
        found = expression_of(text)
    except ValueError as error:
        raise ConfigError(f"--weights-by: {error}") from error
    if found is None:
        raise ConfigError(f"--weights-by {text}: must be an expression over columns, such as max(proxy - ref_loss, 0)")
    if of_model := sorted(found.names & set(OF_MODEL)):
        raise ConfigError(
            f"--weights-by {text}: {of_model[0]} is of the model in training, and there is none here; store a model's "
            "losses with `megaslm score --as NAME`, and use NAME"
        )
    if missing := sorted(found.columns - set(manifest.number_columns)):
        there = ", ".join(manifest.number_columns) or "none"
        raise ConfigError(f"--weights-by {text}: {dataset} has no column {missing[0]}; its columns are: {there}")
    return found


def _sum_of(dataset: Path, domain: str, manifest: Manifest, formula: Formula) -> tuple[int, float]:
    """The number of valid targets of a domain's training rows, and the sum of their values."""
    reader, targets, total = RowReader(dataset, "train", domain), 0, 0.0
    for start in range(0, len(reader), _ROWS_AT_ONCE):
        rows = reader.rows(start, min(len(reader), start + _ROWS_AT_ONCE))
        valid = valid_targets(rows["tokens"], manifest.eos_id, rows.get("target_mask"))
        columns = {name: torch.from_numpy(rows[name].astype(np.float32)) for name in formula.names}
        targets += int(valid.sum())
        total += float(formula.of(columns).double()[torch.from_numpy(valid)].sum())
    return targets, total
