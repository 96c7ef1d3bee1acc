"""The plan of a derived dataset, and the check whether an existing dataset, finished or not, follows it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from megaslm.config.section import Split
from megaslm.dataset.manifest import AttachedColumn, AttachedName, Manifest, Mask, Part, Reference
from megaslm.errors import DataError

REF_LOSS = "ref_loss"
"""The column of losses that every scored dataset has."""


@dataclass(frozen=True)
class SourcePart:
    """A part of the source dataset."""

    split: Split
    domain: str
    part: Part
    mask_is_attached: bool = False
    """Whether the derived dataset has an attached `target_mask`, which the part itself may lack."""

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        return f"{self.split}--{self.domain}--{self.part.name}"

    @property
    def path(self) -> Path:
        """Its folder, relative to the dataset's."""
        return Path(self.split) / self.domain / self.part.name

    def has_rows_of(self, other: Part) -> bool:
        """Whether `other` holds the same rows of tokens."""
        hashes = other.hashes[: len(self.part.hashes)] if self.mask_is_attached else other.hashes
        return (self.part.rows, self.part.hashes) == (other.rows, hashes)


def source_parts(manifest: Manifest) -> Iterator[SourcePart]:
    """All parts of a dataset, in the order of their rows."""
    mask_is_attached = "target_mask" in manifest.columns
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            yield from (SourcePart(split, domain, part, mask_is_attached) for part in share.parts)


class DerivationPlan(BaseModel):
    """The identity of a derived dataset without its rows: when the source grows, the derived dataset can grow too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    tokenizer_sha256: str
    vocab_size: int
    seq_len: int
    eos_id: int
    domains: dict[str, int]
    """Name to number."""
    reference: Reference | None
    """The reference without its name and its run, which are only for people, and the fingerprint of its rows."""
    mask: Mask | None
    columns: dict[AttachedName, AttachedColumn] = {}
    """The attached columns without their file's name, which is only for people, and without their counts of targets,
    which are known at the end."""
    losses: dict[str, Reference] = {}
    """The references of further losses, likewise."""

    @classmethod
    def of(cls, manifest: Manifest) -> "DerivationPlan":
        """The plan of a derived dataset with this manifest."""
        return cls(
            kind=manifest.kind,
            tokenizer_sha256=manifest.tokenizer_sha256,
            vocab_size=manifest.vocab_size,
            seq_len=manifest.seq_len,
            eos_id=manifest.eos_id,
            domains={domain: number for number, domain in enumerate(manifest.domains)},
            reference=None if manifest.reference is None else _nameless(manifest.reference),
            mask=manifest.mask,
            columns={
                name: column.model_copy(update={"file": "", "targets": 0}) for name, column in manifest.columns.items()
            },
            losses={name: _nameless(reference) for name, reference in manifest.losses.items()},
        )

    def require_continues(self, other: "DerivationPlan", place: str) -> None:
        """Raise DataError, naming the differences, unless work by the plan `other` at `place` can be continued."""
        ours, theirs = _flat(self), _flat(other)
        # New domains may be added, and earlier versions did not note attention.
        names = [name for name in theirs | ours if not (name.startswith("domains.") and name not in theirs)]
        names = [name for name in names if name != "reference.attention" or theirs.get(name) is not None]
        different = [name for name in names if ours.get(name) != theirs.get(name)]
        if different:
            listed = "; ".join(f"{name} = {theirs.get(name)} there, {ours.get(name)} here" for name in different)
            raise DataError(f"{place} was made otherwise than it would be now ({listed}); choose another output")


def reference_of(described: Manifest | DerivationPlan, column: str) -> Reference | None:
    """The reference whose losses a column holds, `ref_loss` or one of `losses`; None if there is no such column."""
    return described.reference if column == REF_LOSS else described.losses.get(column)


def with_reference(manifest: Manifest, column: str, reference: Reference) -> Manifest:
    """The same manifest with this reference for a column of losses."""
    if column == REF_LOSS:
        return manifest.model_copy(update={"reference": reference})
    return manifest.model_copy(update={"losses": {**manifest.losses, column: reference}})


def _nameless(reference: Reference) -> Reference:
    return reference.model_copy(update={"name": "", "dataset_sha256": "", "run": None})


def require_rows(sources: Mapping[str, SourcePart], known: Mapping[str, Part], place: str) -> None:
    """Raise DataError where a part of `known` at `place` is not one of the `sources`. Both are by part name."""
    for name, part in known.items():
        source = sources.get(name)
        if source is None or not source.has_rows_of(part):
            found = "has no such part" if source is None else "has other rows in it"
            raise DataError(
                f"{place} holds {name.replace('--', '/')}, and the dataset named now {found}: it was made from another "
                "dataset; choose another output"
            )


def _flat(plan: DerivationPlan) -> dict[str, object]:
    return dict(_leaves("", plan.model_dump(mode="json")))


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{prefix}.{name}" if prefix else name, inner)
    else:
        yield prefix, value
