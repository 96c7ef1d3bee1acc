"""What a dataset is and where it came from: DATASET/manifest.json, written last."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from megaslm.config.recipe import DomainName
from megaslm.config.schema import Ratio, Split
from megaslm.errors import CorruptData, DataError
from megaslm.files import write_file

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
"""The folder in a dataset that holds its tokenizer, as a Hugging Face folder."""
COST = "cost.json"
"""The file in a scored dataset that says what its scoring has cost."""
SCORES = "scores.json"
"""The file in a scored dataset that says how its losses are distributed, and who computed them."""
INPUTS = "inputs.json"
"""The file in a prepared dataset that says how the files looked that it was made of."""
BESIDE_ROWS = (COST, SCORES, INPUTS)
"""Files that tell about the rows; a dataset is one without them."""
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
    """Of the column `tokens`, row after row, as little-endian integers of the stored width."""
    ref_loss_sha256: str | None
    """Of the column `ref_loss`, row after row, as little-endian float16; null where there is none."""
    ref_entropy_sha256: str | None = None
    """Of the column `ref_entropy`, likewise."""
    selected_sha256: str | None = None
    """Of the column `selected`, row after row."""
    index_sha256: str
    """Of its index.json, which in turn holds a checksum of each shard."""
    bytes: int
    """Size of its shard files."""


class DomainSplit(_Record):
    """One domain's share of one split."""

    rows: int
    """Rows over all parts."""
    tokens: int
    """Valid targets over all parts: a token that follows EOS is none."""
    documents: int
    """Documents over all parts."""
    parts: tuple[Part, ...]
    """In the order of their rows."""


class SourceFile(_Record):
    """A file that text was read from, or the stretch of it that one part was made of."""

    path: str
    """As the recipe's paths led to it; files of the standard library begin with the Python version."""
    bytes: int
    """Its size."""
    start: int
    """The first byte of the stretch."""
    stop: int
    """The byte after its last; with `start` 0 and the file's size it is the whole file."""
    sha256: str
    """Of the bytes of the stretch."""
    version: str | None = None
    """Of a remote file: what its store calls this content."""


class Packing(_Record):
    """How documents became rows."""

    after_document: Literal["eos"] = "eos"
    """What follows each document."""
    overlap_tokens: Literal[1] = 1
    """Tokens that a row shares with the one before it in its part."""
    padding: Literal["eos"] = "eos"
    """What fills the last row of a part."""
    special_tokens_in_text: Literal["as text"] = "as text"
    """How a text that spells a special token was encoded."""


class Reference(_Record):
    """The model whose losses a scored dataset holds, and how it was run."""

    weights_sha256: str
    """Fingerprint of its weights."""
    name: str
    """What it was called."""
    tokenizer_sha256: str | None = None
    """Fingerprint of its tokenizer where that is not the dataset's, though it gives texts the same ids."""
    precision: str
    """Arithmetic of its forward pass."""
    document_isolation: bool
    """Whether attention and positions started afresh at every document."""
    window: int
    """Tokens that it saw at once."""
    stride: int
    """Tokens between the starts of two windows of a row; with `window`, where they do not overlap."""
    batch_rows: int
    """Rows read at once, on which the last bits of a loss depend."""
    dataset_sha256: str
    """`Manifest.tokens_fingerprint` of the rows that it scored."""
    entropy: bool = False
    """Whether the dataset holds `ref_entropy`, the entropy of its predictions, beside `ref_loss`."""


class Mask(_Record):
    """The rule by which the targets of a masked dataset were selected, once for all runs."""

    # Datasets of before have the name `score`.
    criterion: Literal["reference", "entropy", "reference_and_entropy"] = Field(
        validation_alias=AliasChoices("criterion", "score")
    )
    """What was ranked: the reference's losses, the entropies of its predictions, or both; smallest first."""
    keep_ratio: Ratio
    """The share of targets that was kept, as it was written."""
    max_ref_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Targets of a larger reference loss were never selected, in nats; null has no cap."""
    scope: Literal["sequence"] = "sequence"
    """Among what a target had to rank: its row."""


class Manifest(_Record):
    """A finished dataset."""

    schema_version: Literal[2] = SCHEMA_VERSION
    """Of this file."""
    kind: Literal["tokens", "scored", "masked"]
    """scored datasets have `ref_loss` beside the tokens, masked ones a bit a target."""
    name: str
    """What the corpus is called."""
    megaslm_version: str
    """What wrote it."""
    recipe_sha256: str
    """Fingerprint of the recipe that the text was prepared by."""
    seq_len: int
    """Targets per row; rows hold seq_len + 1 tokens."""
    vocab_size: int
    """One more than the largest token id."""
    tokenizer_sha256: str
    """Fingerprint of the tokenizer's meaning; `megaslm.tokenizer.tokenizer.tokenizer_sha256`."""
    ids_sha256: str | None = None
    """Fingerprint of what the ids of rows mean, `megaslm.tokenizer.tokenizer.ids_sha256`: tokenizers that
    differ in special tokens alone share it. Null in datasets of earlier versions."""
    tokenizer_files: dict[str, str]
    """SHA-256 of each file in the dataset's folder `tokenizer`, by name."""
    eos_id: int
    """Ends every document and fills rows."""
    bos_id: int | None
    """The tokenizer's, for information: it is never added."""
    packing: Packing = Packing()
    """How documents became rows."""
    domains: tuple[DomainName, ...]
    """Names, which are folders too; a domain's place is its number in the column `domain`."""
    licences: dict[str, str]
    """Licence of each domain."""
    splits: dict[Split, dict[DomainName, DomainSplit]]
    """Split to domain to what is there; what has no rows is left out."""
    sources: tuple[SourceFile, ...]
    """Everything that was read, in order."""
    skipped: tuple[str, ...] = ()
    """Files left out because they are not UTF-8."""
    left_out: dict[str, int] = {}
    """Documents that the recipe left out, by the key of it that did so."""
    passed_over: dict[str, int] = {}
    """What lay in the folders that the recipe names and was not read, by source and reason: files, and folders that
    nobody looked into."""
    absent: tuple[str, ...] = ()
    """What this machine's Python lacks of the standard library."""
    reference: Reference | None = None
    """Of a scored dataset, and of one whose mask was made of such a dataset."""
    mask: Mask | None = None
    """Of a masked dataset."""

    def ids_fingerprint(self, other: "Manifest") -> str:
        """What both datasets have in common where an id means the same in both, as far as both can tell."""
        if self.ids_sha256 is None or other.ids_sha256 is None:
            return self.tokenizer_sha256
        return self.ids_sha256

    def part_counts(self) -> dict[Split, dict[DomainName, int]]:
        """How many parts each domain has in each split."""
        return {
            split: {domain: len(share.parts) for domain, share in domains.items()}
            for split, domains in self.splits.items()
        }

    def tokens_fingerprint(self, first_parts: Mapping[Split, Mapping[DomainName, int]] | None = None) -> str:
        """SHA-256 over the token hashes of parts: equal where two datasets hold the same rows in one order.

        `first_parts` are so many of each domain; None: all.
        """
        counts = self.part_counts() if first_parts is None else first_parts
        places = [
            [split, domain, part.name, part.rows, part.tokens_sha256]
            for split, domains in sorted(self.splits.items())
            for domain, share in sorted(domains.items())
            for part in share.parts[: counts.get(split, {}).get(domain, 0)]
        ]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()


def write_manifest(dataset: Path, manifest: Manifest) -> None:
    """Declare `dataset` finished. The file begins with the SHA-256 of itself, written with zeros in its place."""
    fields = manifest.model_dump_json(indent=1).removeprefix("{")
    unsigned = f'{{\n "checksum": "{_NO_CHECKSUM}",{fields}\n'
    checksum = hashlib.sha256(unsigned.encode("utf-8")).hexdigest()
    write_file(dataset / MANIFEST, unsigned.replace(_NO_CHECKSUM, checksum, 1))


def read_manifest(dataset: Path) -> Manifest:
    """The manifest of a finished dataset.

    Raises DataError where there is no such folder, no manifest in it, or one that this version cannot read; CorruptData
    where the file was changed since it was written.
    """
    path = dataset / MANIFEST
    if not dataset.is_dir():
        raise DataError(f"{dataset}: there is no such dataset folder; `megaslm prepare` makes one")
    if not path.is_file():
        raise DataError(f"{dataset}: no {MANIFEST}: not a dataset, or unfinished: run `megaslm prepare` again")
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
        raise CorruptData(path, f"is not the manifest of a dataset: {error}") from error


def _require_unchanged(path: Path, content: bytes, begin: re.Match[bytes]) -> None:
    stated = begin[1].decode()
    found = hashlib.sha256(content.replace(begin[1], _NO_CHECKSUM.encode(), 1)).hexdigest()
    if found != stated:
        raise CorruptData(
            path,
            f"was changed since it was written: its content has the checksum {found[:12]}, it states {stated[:12]}",
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
