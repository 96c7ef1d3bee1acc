"""DATASET/manifest.json: the content of a dataset and what it was made of. Written last."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from megaslm.config.hub import Hub
from megaslm.config.recipe import Bos, DomainName
from megaslm.config.section import Split
from megaslm.config.selection import Ratio
from megaslm.dataset.kinds import Kind, described, kind_of
from megaslm.errors import CorruptData, DataError
from megaslm.files import first_problem, write_file

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
"""The folder in a dataset that holds its tokenizer, as a Hugging Face folder."""
COST = "cost.json"
"""The file in a scored dataset with the cost of its scoring."""
SCORES = "scores.json"
"""The file in a scored dataset with the distribution of its losses, and the processes that computed them."""
INPUTS = "inputs.json"
"""The file in a prepared dataset that describes the input files."""
BESIDE_ROWS = (COST, SCORES, INPUTS)
"""Files that describe the rows. A dataset is complete without them."""
SCHEMA_VERSION: Literal[2] = 2

_CHECKSUM = re.compile(rb'{\n "checksum": "([0-9a-f]{64})",')
_NO_CHECKSUM = "0" * 64


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Part(_Record):
    """The rows that one task wrote: a folder of shards."""

    name: str
    """Its folder in DATASET/<split>/<domain>, `part-` and five digits."""
    rows: int
    """Rows of seq_len + 1 tokens."""
    tokens_sha256: str
    """Hash of the column `tokens`, row after row, as little-endian integers of the stored width."""
    ref_loss_sha256: str | None
    """Hash of the column `ref_loss`, row after row, as little-endian float16; null where there is none."""
    ref_entropy_sha256: str | None = None
    """Hash of the column `ref_entropy`, likewise."""
    ref_top_logprob_sha256: str | None = None
    """Hash of the column `ref_top_logprob`, likewise."""
    ref_top_id_sha256: str | None = None
    """Hash of the column `ref_top_id`, row after row, as little-endian integers of the tokens' width."""
    selected_sha256: str | None = None
    """Hash of the column `selected`, row after row."""
    target_mask_sha256: str | None = None
    """Hash of the column `target_mask`, row after row."""
    weight_sha256: str | None = None
    """Hash of the column `weight`, row after row, as little-endian float32."""
    losses_sha256: tuple[tuple[str, str], ...] = ()
    """Name and hash of each column of `Manifest.losses`; the hash as that of `ref_loss`."""
    index_sha256: str
    """Hash of its index.json, which holds a checksum of each shard."""
    bytes: int
    """Size of its shard files."""

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hashes of its tokens and, if it has one, of its `target_mask`: equal for the same rows."""
        return (self.tokens_sha256, *([] if self.target_mask_sha256 is None else [self.target_mask_sha256]))


class DomainSplit(_Record):
    """One domain's share of one split."""

    rows: int
    """Rows over all parts."""
    tokens: int
    """Valid targets over all parts. A token that follows EOS, or that `target_mask` excludes, is not a valid target."""
    documents: int
    """Documents over all parts."""
    parts: tuple[Part, ...]
    """In the order of their rows."""


class SourceFile(_Record):
    """A file that text was read from, or the stretch of it that became one part."""

    path: str
    """The path as found through the recipe's paths. Paths in the standard library begin with the Python version."""
    bytes: int
    """Size of the file."""
    start: int
    """The first byte of the stretch."""
    stop: int
    """The byte after the stretch. The stretch is the whole file if `start` is 0 and `stop` the file's size."""
    sha256: str
    """Hash of the bytes of the stretch."""
    version: str | None = None
    """The store's version of a remote file's content."""


class Packing(_Record):
    """How documents became rows."""

    after_document: Literal["eos"] = "eos"
    """The token that follows each document."""
    bos: Bos = "none"
    """Where rows have BOS. Rows of earlier builds have none."""
    overlap_tokens: Literal[0, 1] = 1
    """Tokens that a row shares with the one before it in its part: none if each row begins with BOS."""
    padding: Literal["eos"] = "eos"
    """The token that fills the last row of a part."""
    special_tokens_in_text: Literal["as text"] = "as text"
    """The encoding of a text that spells a special token."""

    @classmethod
    def with_bos(cls, bos: Bos) -> "Packing":
        """The packing of a recipe's `bos`."""
        return cls(bos=bos, overlap_tokens=0 if bos == "row" else 1)


class RunStep(_Record):
    """The checkpoint of a run that a reference was made of."""

    run: str
    """The run folder, as it was named."""
    step: int
    """Optimiser steps that the weights have learned in."""


class Reference(_Record):
    """The model whose losses a scored dataset holds, and how it was run."""

    weights_sha256: str
    """Fingerprint of its weights."""
    name: str
    tokenizer_sha256: str | None = None
    """Fingerprint of its tokenizer if that differs from the dataset's. Unless `aligned`, it gives a text equal ids."""
    precision: str
    """Arithmetic of its forward pass."""
    attention: str | None = None
    """The kernel of its attention, on which the last bits of a loss depend: FA2, FA3 or FA4, torch-cpu, or mask for an
    explicit mask. Older datasets do not say."""
    document_isolation: bool
    """Whether attention and positions restarted at every document."""
    window: int
    """Tokens of context that it saw at once."""
    stride: int
    """Tokens between the starts of two windows of a row. Windows do not overlap if `stride` equals `window`."""
    batch_rows: int
    """Rows per batch. The last bits of a loss depend on it."""
    dataset_sha256: str
    """`Manifest.tokens_fingerprint` of the rows that it scored."""
    entropy: bool = False
    """Whether the dataset holds `ref_entropy`, the entropy of its predictions, beside `ref_loss`."""
    top_logits: int = 0
    """How many of its most likely tokens the dataset holds per target, in `ref_top_logprob` and `ref_top_id`."""
    aligned: bool = False
    """Whether it read whole documents in tokens of its own, and its values were carried over to the rows' tokens."""
    run: RunStep | None = None
    """Where it is from, if it was named as a run."""


class Mask(_Record):
    """The rule by which the targets of a masked dataset were selected, once for all runs."""

    # Older datasets have the name `score`.
    criterion: Literal["reference", "entropy", "reference_and_entropy"] = Field(
        validation_alias=AliasChoices("criterion", "score")
    )
    """What was sorted, largest first: minus the reference's losses, minus the entropies of its predictions, or both."""
    keep_ratio: Ratio
    """The share of targets that was kept, as the user wrote it."""
    max_ref_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """In nats. Targets with a larger reference loss were never selected; null: no cap."""
    scope: Literal["sequence"] = "sequence"
    """The set in which a target was sorted: its row."""


AttachedName = Literal["target_mask", "selected", "weight"]
"""The columns that `megaslm attach` can put beside the tokens."""


class AttachedColumn(_Record):
    """A column that `megaslm attach` took from a file."""

    file: str
    """The file's name."""
    sha256: str
    """Hash of the file."""
    addressed_by: Literal["row", "document"]
    """What the lines of the file name: targets of a row, or tokens of a document."""
    lines: int
    """Lines of the file. Each of them is in the column."""
    targets: int
    """Valid targets that the lines covered when it was attached."""
    default: bool | float
    """The value of the other valid targets."""


class Manifest(_Record):
    """A finished dataset."""

    schema_version: Literal[2] = SCHEMA_VERSION
    """Version of this file's format."""
    kind: Literal["tokens", "scored", "masked"]
    """Scored datasets have `ref_loss` beside the tokens, masked ones one bit per target, `selected`."""
    name: str
    """Name of the corpus."""
    megaslm_version: str
    """The version that wrote it."""
    recipe_sha256: str
    """Fingerprint of the recipe of the text."""
    seq_len: int
    """Targets per row; rows hold seq_len + 1 tokens."""
    vocab_size: int
    """One more than the largest token id."""
    tokenizer_sha256: str
    """Fingerprint of the tokenizer's meaning; `megaslm.tokenizer.tokenizer.tokenizer_sha256`."""
    ids_sha256: str | None = None
    """Fingerprint of the meaning of the rows' ids, `megaslm.tokenizer.tokenizer.ids_sha256`. Tokenizers that differ
    only in special tokens share it. Null in datasets of earlier versions."""
    tokenizer_files: dict[str, str]
    """SHA-256 of each file in the dataset's folder `tokenizer`, by name."""
    eos_id: int
    """The id that ends every document and fills rows."""
    bos_id: int | None
    """The tokenizer's BOS id. `packing.bos` says where rows have it."""
    packing: Packing = Packing()
    target_mask: bool = False
    """Whether rows have the column `target_mask`: conversations exclude prompts and outputs of tools, and a mask may be
    attached."""
    domains: tuple[DomainName, ...]
    """Names, which are also folders. A domain's index here is its number in the column `domain`."""
    licences: dict[str, str]
    """Licence of each domain."""
    splits: dict[Split, dict[DomainName, DomainSplit]]
    """Split to domain to its share. Shares without rows are left out."""
    sources: tuple[SourceFile, ...]
    """All files that were read, in order."""
    hub: tuple[Hub, ...] = ()
    """Where the files come from by the recipe. What was read is known by the hashes in `sources` alone."""
    skipped: tuple[str, ...] = ()
    """Files left out because they are not UTF-8."""
    left_out: dict[str, int] = {}
    """Number of documents that the recipe left out, by the recipe's key for it."""
    passed_over: dict[str, int] = {}
    """Number of files that were not read and folders that were not searched, in the recipe's folders, by source and
    reason."""
    absent: tuple[str, ...] = ()
    """Modules of the standard library that this machine's Python lacks."""
    reference: Reference | None = None
    """The reference of a scored dataset, or of a masked dataset made from one."""
    mask: Mask | None = None
    """The rule of a masked dataset; null where its mask is attached."""
    columns: dict[AttachedName, AttachedColumn] = {}
    """The attached columns, by name."""
    losses: dict[str, Reference] = {}
    """References whose losses rows have as columns of their own, by the names of the columns (`score --as`)."""

    def ids_fingerprint(self, other: "Manifest") -> str:
        """A fingerprint that is equal for both datasets if ids mean the same in both, as far as both record it."""
        if self.ids_sha256 is None or other.ids_sha256 is None:
            return self.tokenizer_sha256
        return self.ids_sha256

    @property
    def bos_in_rows(self) -> int | None:
        """The BOS id if rows have BOS, else None."""
        return None if self.packing.bos == "none" else self.bos_id

    @property
    def bos_in_words(self) -> str:
        """Where rows have BOS and, if they have, which id; equal for datasets whose rows may be mixed."""
        return self.packing.bos if self.bos_in_rows is None else f"{self.packing.bos} (id {self.bos_in_rows})"

    @property
    def number_columns(self) -> tuple[str, ...]:
        """The columns that hold a number per target."""
        scored = self.kind == "scored"
        has_entropy = scored and self.reference is not None and self.reference.entropy
        present = {"ref_loss": scored, "ref_entropy": has_entropy, "weight": "weight" in self.columns}
        return (*(name for name, is_there in present.items() if is_there), *self.losses)

    def part_counts(self) -> dict[Split, dict[DomainName, int]]:
        """The number of parts of each domain in each split."""
        return {
            split: {domain: len(share.parts) for domain, share in domains.items()}
            for split, domains in self.splits.items()
        }

    def tokens_fingerprint(self, first_parts: Mapping[Split, Mapping[DomainName, int]] | None = None) -> str:
        """SHA-256 over the token hashes of parts: equal if two datasets hold the same rows in the same order, with the
        same `target_mask` if they have one.

        `first_parts`: how many parts of each domain to include; None: all.
        """
        counts = self.part_counts() if first_parts is None else first_parts
        places = [
            [split, domain, part.name, part.rows, *part.hashes]
            for split, domains in sorted(self.splits.items())
            for domain, share in sorted(domains.items())
            for part in share.parts[: counts.get(split, {}).get(domain, 0)]
        ]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()


def write_manifest(dataset: Path, manifest: Manifest) -> None:
    """Mark `dataset` as finished. The file begins with its own SHA-256, computed with zeros in the hash's place."""
    fields = manifest.model_dump_json(indent=1).removeprefix("{")
    unsigned = f'{{\n "checksum": "{_NO_CHECKSUM}",{fields}\n'
    checksum = hashlib.sha256(unsigned.encode("utf-8")).hexdigest()
    write_file(dataset / MANIFEST, unsigned.replace(_NO_CHECKSUM, checksum, 1))


def read_manifest(dataset: Path) -> Manifest:
    """The manifest of a finished dataset.

    Raises DataError where the path is not a dataset, and says what it is, or where the manifest is of a version that
    this one cannot read; CorruptData where the file was changed since it was written.
    """
    path = dataset / MANIFEST
    if kind_of(dataset) is not Kind.DATASET:
        raise DataError(f"{dataset} {described(dataset)}")
    content = path.read_bytes()
    begin = _CHECKSUM.match(content)
    try:
        if begin is None:
            _require_version(path, content)
            raise CorruptData(path, "does not begin with its checksum: it was changed since it was written")
        _require_unchanged(path, content, begin)
        fields = b"{" + content[begin.end() :]
        _require_version(path, fields)
        return Manifest.model_validate_json(fields)
    except ValidationError as error:
        raise CorruptData(path, f"is not the manifest of a dataset ({first_problem(error)})") from error


def _require_unchanged(path: Path, content: bytes, begin: re.Match[bytes]) -> None:
    stated = begin[1].decode()
    found = hashlib.sha256(content.replace(begin[1], _NO_CHECKSUM.encode(), 1)).hexdigest()
    if found != stated:
        raise CorruptData(
            path,
            f"was changed since it was written: its content has the checksum {found[:12]}, but it states {stated[:12]}",
        )


def _require_version(path: Path, content: bytes) -> None:
    found = _Version.model_validate_json(content).schema_version
    if found != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {found}; this MegaSLM reads version {SCHEMA_VERSION}: "
            "prepare the dataset again, or use the MegaSLM that wrote it"
        )


class _Version(BaseModel):
    schema_version: int
