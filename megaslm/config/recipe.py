"""A corpus recipe: what a dataset is made of. One YAML in `data/` each."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.schema import NonNegative, Positive, Section

Fraction = Annotated[float, Field(gt=0, le=1)]


class TrainSentencePiece(Section):
    """A SentencePiece BPE model trained on the recipe's own text: identity normalisation, byte fallback, every space
    kept, no dummy prefix."""

    vocab_size: Annotated[int, Field(ge=300)]
    """Pieces, the 256 bytes and the special ones included."""
    sample_bytes: Positive = 10_000_000
    """About how much text to train on, drawn evenly from all sources."""
    character_coverage: Fraction = 0.9995
    """Share of characters with a piece of their own; the rest is spelled in bytes."""


class TokenizerSection(Section):
    """Where the tokenizer comes from. Exactly one is set."""

    huggingface: str | None = None
    """A Hugging Face folder with a tokenizer.json."""
    sentencepiece: str | None = None
    """A SentencePiece model file."""
    train_sentencepiece: TrainSentencePiece | None = None
    """Train one on the recipe's text."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TokenizerSection":
        chosen = [name for name, value in self if value is not None]
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none"
            raise ValueError(
                f"exactly one of huggingface, sentencepiece, train_sentencepiece must be set; found {found}"
            )
        return self


class Source(Section):
    """Some text of one domain."""

    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """The domain's name; it becomes a folder. Several sources may share one."""
    reader: Literal["jsonl", "parquet", "text", "tree", "python-docs", "python-source"]
    """jsonl (also .gz, .zst) and parquet: one document a record · text, tree: one a file · python-docs: the prose
    documentation of the standard library of the Python that runs · python-source: its source tree."""
    paths: tuple[str, ...] = ()
    """Files, globs (`**` crosses folders) and, for `tree`, folders. The standard library needs none."""
    text_field: str = "text"
    """jsonl and parquet: the field that holds the text."""
    group_field: str | None = None
    """jsonl and parquet: documents with an equal value stay together in train or heldout; null: equal texts do."""
    suffixes: tuple[str, ...] = ()
    """tree: read files with these endings only; none means all."""
    keep_fraction: Fraction = 1.0
    """Keep this share of the documents, chosen by the hash of their text."""
    licence: str
    """The licence of the text; it goes into the manifest."""

    @model_validator(mode="after")
    def _paths_fit_reader(self) -> "Source":
        built_in = self.reader.startswith("python-")
        if built_in and self.paths:
            raise ValueError(f"reader {self.reader} reads the running Python's standard library and takes no paths")
        if not built_in and not self.paths:
            raise ValueError(f"reader {self.reader} needs paths")
        return self


class Recipe(Section):
    """A corpus and how it becomes rows."""

    name: str
    """The dataset's name."""
    seq_len: Positive
    """Targets per row; rows hold seq_len + 1 tokens."""
    tokenizer: TokenizerSection
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """What to read, in order."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of groups that go to the `heldout` split, by the hash of the group."""
    split_seed: NonNegative = 0
    """Another number, another division into train and heldout."""
    part_bytes: Positive = 64_000_000
    """Files are joined into one part up to this size; a part is what is written, retried and resumed as one."""
    shard_bytes: Positive = 64_000_000
    """Size at which a part starts another shard file."""
