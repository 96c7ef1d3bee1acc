"""A corpus recipe: what a dataset is made of. One YAML in `data/` each. Paths are relative to the working directory."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.schema import NonNegative, Positive, Section

Fraction = Annotated[float, Field(gt=0, le=1)]
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class TrainSentencePiece(Section):
    """A SentencePiece BPE model trained on the recipe's own text: identity normalisation, byte fallback, every space
    kept, no dummy prefix."""

    vocab_size: Annotated[int, Field(ge=300)]
    """Pieces, the 256 bytes and the special ones included."""
    domains: tuple[DomainName, ...] | None = None
    """Whose text to train on; null means all. Held-out text is never trained on."""
    sample_bytes: Positive = 10_000_000
    """Most text to train on: documents drawn evenly by their hash, held in memory."""
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

    domain: DomainName
    """The domain's name; it becomes a folder. Several sources may share one."""
    reader: Literal["jsonl", "parquet", "text", "tree", "python-docs", "python-source"]
    """jsonl (also .gz, .zst) and parquet: one document a record · text, tree: one a file · python-docs: the prose
    documentation of the standard library of the Python that runs · python-source: its source tree."""
    paths: tuple[str, ...] = ()
    """Files, folders and globs (`**` crosses folders). The standard library needs none."""
    text_field: str = "text"
    """jsonl and parquet: the field that holds the text."""
    group_field: str | None = None
    """jsonl and parquet: documents with an equal value stay together in train or heldout; null: equal texts do."""
    suffixes: tuple[str, ...] = ()
    """In folders, read files with these endings only; none means those usual for the reader, for `tree` all."""
    exclude: tuple[str, ...] = ()
    """In folders, leave out paths of these patterns, such as `*/vendor/*`; `*` crosses slashes."""
    skip_invalid_utf8: bool = False
    """text and tree: leave out files that are not UTF-8 instead of refusing them; the manifest lists them."""
    min_characters: NonNegative = 200
    """python-docs: leave out shorter docstrings."""
    keep_fraction: Fraction = 1.0
    """Keep this share of the documents, chosen by the hash of their text."""
    licence: str | None = None
    """The licence of the text; it goes into the manifest. null means the recipe's."""

    @model_validator(mode="after")
    def _paths_fit_reader(self) -> "Source":
        built_in = self.reads_standard_library
        if built_in and self.paths:
            raise ValueError(f"reader {self.reader} reads the running Python's standard library and takes no paths")
        if not built_in and not self.paths:
            raise ValueError(f"reader {self.reader} needs paths")
        return self

    @property
    def reads_standard_library(self) -> bool:
        """Whether the text is that of the running Python."""
        return self.reader.startswith("python-")


class Recipe(Section):
    """A corpus and how it becomes rows."""

    name: str
    """The dataset's name."""
    licence: str | None = None
    """The licence of every source that states none of its own."""
    seq_len: Positive
    """Targets per row; rows hold seq_len + 1 tokens."""
    tokenizer: TokenizerSection
    """Where the tokenizer comes from."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """What to read, in order."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of groups that go to the `heldout` split, by the hash of the group."""
    split_seed: NonNegative = 0
    """Another number, another division into train and heldout."""
    part_bytes: Positive = 64_000_000
    """Files are joined into one part up to this size; a part is what is written, retried and resumed as one. A larger
    file is a part of its own."""
    shard_bytes: Annotated[int, Field(gt=0, lt=2**32)] = 64_000_000
    """Size, before compression, at which a part starts another shard file."""
    compression: Literal["zstd"] | None = None
    """How shards are compressed; null is quickest to read."""

    @model_validator(mode="after")
    def _every_source_has_a_licence(self) -> "Recipe":
        without = [source.domain for source in self.sources if self.licence_of(source) is None]
        if without:
            raise ValueError(f"no licence for {', '.join(without)}: set `licence` of the recipe or of each source")
        return self

    @model_validator(mode="after")
    def _tokenizer_domains_exist(self) -> "Recipe":
        trained = self.tokenizer.train_sentencepiece
        unknown = sorted(set(trained.domains or ()) - set(self.domains)) if trained else []
        if unknown:
            raise ValueError(
                f"tokenizer.train_sentencepiece.domains names {', '.join(unknown)}; "
                f"the sources' domains are {', '.join(self.domains)}"
            )
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """Each domain once, in the order of the sources; a domain's place is its number in the dataset."""
        return tuple(dict.fromkeys(source.domain for source in self.sources))

    def licence_of(self, source: Source) -> str | None:
        """The licence of a source's text; never null in a checked recipe."""
        return source.licence or self.licence
