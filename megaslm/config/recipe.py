"""A corpus recipe: the contents of a dataset, one YAML in `data/` each. Paths are relative to the working directory."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.hub import Hub
from megaslm.config.section import NAME_PATTERN, NonNegative, Positive, Section
from megaslm.config.template import template_parts

Fraction = Annotated[float, Field(gt=0, le=1)]
DomainName = Annotated[str, Field(pattern=NAME_PATTERN)]
Bos = Literal["none", "document", "row"]
"""Where rows have the tokenizer's BOS: nowhere, before each document, or as the first token of each row."""
ChatFormat = Literal["tora", "tokenizer"]
"""How a conversation becomes a text of which only some tokens are trained on."""


class TrainSentencePiece(Section):
    """A SentencePiece BPE model trained on the recipe's own text, with identity normalisation, byte fallback, all
    spaces kept and no dummy prefix."""

    vocab_size: Annotated[int, Field(ge=300)]
    """Number of pieces, the 256 bytes and the special ones included."""
    domains: tuple[DomainName, ...] | None = None
    """Domains to train on; null means all. Held-out text is never used."""
    sample_bytes: Positive = 10_000_000
    """Most bytes of text to train on. Documents are drawn evenly by their hash and held in memory."""
    character_coverage: Fraction = 0.9995
    """Share of characters with a piece of their own; the others are spelled in bytes."""


class TokenizerSection(Section):
    """Where the tokenizer comes from. Exactly one is set."""

    huggingface: str | None = None
    """A Hugging Face folder with a tokenizer.json."""
    sentencepiece: str | None = None
    """A SentencePiece model file."""
    train_sentencepiece: TrainSentencePiece | None = None
    """Train a tokenizer on the recipe's text."""

    @model_validator(mode="after")
    def _one_source(self) -> "TokenizerSection":
        chosen = [name for name, value in self if value is not None]
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none"
            raise ValueError(
                f"exactly one of huggingface, sentencepiece, train_sentencepiece must be set; found {found}"
            )
        return self


class Filter(Section):
    """A condition on documents: `length` in characters, or `regex`, a pattern that must or must not occur."""

    name: Literal["length", "regex"]
    """Kind of condition."""
    min_characters: NonNegative = 0
    """length: leave out documents with fewer characters."""
    max_characters: Positive | None = None
    """length: leave out documents with more characters; null has no limit."""
    keep: str | None = None
    """regex: keep only documents that contain this pattern, in Python's syntax."""
    drop: str | None = None
    """regex: leave out documents that contain this pattern."""

    @model_validator(mode="after")
    def _says_what_to_do(self) -> "Filter":
        has_length = self.min_characters > 0 or self.max_characters is not None
        patterns = [pattern for pattern in (self.keep, self.drop) if pattern is not None]
        if self.name == "length" and (not has_length or patterns):
            raise ValueError("filter length needs min_characters or max_characters, and nothing else")
        if self.name == "regex" and (len(patterns) != 1 or has_length):
            raise ValueError("filter regex needs exactly one of keep and drop, and nothing else")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return self


class Source(Section):
    """Text of one domain, or of several domains that a field tells apart."""

    domain: DomainName | None = None
    """The domain's name, which also names its folder. Several sources may share one."""
    domain_field: str | None = None
    """Records, instead of `domain`: the field whose value selects the domain from `domains`."""
    domains: dict[str, DomainName | None] = Field(default_factory=dict)
    """Domain for each value of `domain_field`; null leaves its documents out. A value without an entry is an error.
    Documents whose field is null or NaN have the value `null`."""
    reader: Literal["jsonl", "json", "parquet", "text", "tree", "python-docs", "python-source"]
    """jsonl, json, parquet: one document per record; a json file is one array of records · text, tree: one per file ·
    python-docs: the prose documentation of the running Python's standard library · python-source: its source tree.
    jsonl, json and text may be compressed (.gz, .zst)."""
    paths: tuple[str, ...] = ()
    """Files, folders, globs (`**` crosses folders) and their URLs, such as s3://bucket/web. Links are followed, and a
    file is read once. Hidden names are read only where a part of the path begins with a dot. The standard library
    needs no paths."""
    hub: Hub | None = None
    """The dataset of the Hugging Face hub that the files come from; null where they come from elsewhere."""
    text_field: str = "text"
    """Records: the field that holds the text; `meta.text` is the field `text` of the object `meta`."""
    template: str | None = None
    """Records, instead of text_field: the text with fields in braces, such as "{query}\\n{response}". Dots lead into
    objects, and `{{` is a brace. Each field must hold a string."""
    messages_field: str | None = None
    """Records, instead of text_field: the field that holds a conversation, a list of messages with `role` and `content`
    or with `from` and `value`. Each becomes a line with its role and a colon, and its content below. A blank line
    follows each but the last. The roles `human` and `gpt` are written `user` and `assistant`."""
    chat_format: ChatFormat | None = None
    """Conversations: how `messages_field` becomes a text for `objective: sft`, which trains on what the assistant
    writes. tora: `<|user|>` and `<|assistant|>` on lines of their own, as models that run programs are fine-tuned ·
    tokenizer: the tokenizer's own chat template. null: lines with roles, and every token is trained on."""
    group_field: str | None = None
    """Records: documents with equal values of this field go to the same split, train or heldout. Where it is
    null, or a document's value is null, NaN, blank or empty, documents with equal text do."""
    separator: str | None = None
    """text: the line between two documents of a file, such as `<|endoftext|>`; null: each file is one document."""
    filters: tuple[Filter, ...] = ()
    """Conditions that a document must meet, all of them; the manifest counts the documents that each one leaves out."""
    suffixes: tuple[str, ...] = ()
    """In folders, read only files with these endings; none means the reader's usual ones, for `tree` all files."""
    exclude: tuple[str, ...] = ()
    """In folders and globs, leave out paths that match these patterns, such as `*/vendor/*`; `*` crosses slashes."""
    skip_invalid_utf8: bool = False
    """text and tree: leave out files that are not UTF-8 instead of raising an error; the manifest lists them."""
    min_characters: NonNegative = 200
    """python-docs: leave out docstrings with fewer characters."""
    keep_fraction: Fraction = 1.0
    """Keep this share of the documents, chosen by the hash of their text."""
    licence: str | None = None
    """The licence of the text, recorded in the manifest; null means the recipe's. One of the two must be set."""

    @model_validator(mode="after")
    def _paths_fit_reader(self) -> "Source":
        built_in = self.reads_standard_library
        if built_in and self.paths:
            raise ValueError(f"reader {self.reader} reads the running Python's standard library and takes no paths")
        if not built_in and not self.paths:
            raise ValueError(f"reader {self.reader} needs paths")
        if not all(path.strip() for path in self.paths):
            raise ValueError("a path is empty; write . for the current folder, or remove the path from the list")
        return self

    @model_validator(mode="after")
    def _fields_fit_reader(self) -> "Source":
        for name in ("domain_field", "group_field", "template", "messages_field"):
            if getattr(self, name) is not None and not self.has_records:
                raise ValueError(f"{name} needs a reader with fields: jsonl, json or parquet; found {self.reader}")
        if self.separator is not None and (self.reader != "text" or not self.separator.strip()):
            raise ValueError("separator must be a line that is not blank, and needs reader text")
        return self

    @model_validator(mode="after")
    def _one_way_to_the_text(self) -> "Source":
        # A recipe that was written out names every default, text_field's too.
        set_here = [self.text_field != "text", self.template is not None, self.messages_field is not None]
        if sum(set_here) > 1:
            raise ValueError("text_field, template and messages_field exclude one another; set one of them")
        if self.chat_format is not None and self.messages_field is None:
            raise ValueError(
                f"chat_format = {self.chat_format} needs messages_field, the field that holds the conversation"
            )
        if self.template is not None:
            try:
                template_parts(self.template)
            except ValueError as error:
                raise ValueError(f"template = {self.template!r}: {error}") from error
        return self

    @model_validator(mode="after")
    def _one_way_to_the_domain(self) -> "Source":
        if (self.domain is None) == (self.domain_field is None):
            raise ValueError("exactly one of domain and domain_field must be set")
        if (self.domain_field is None) != (not self.domains):
            raise ValueError("domain_field and domains go together: the field, and the domain of each of its values")
        if self.domain_field is not None and not self.domain_names:
            raise ValueError("domains leaves out every value; name a domain for at least one value")
        return self

    @property
    def has_records(self) -> bool:
        """Whether its files hold records with fields."""
        return self.reader in ("jsonl", "json", "parquet")

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The fields that the text is made of, each once."""
        if self.template is not None:
            return tuple(dict.fromkeys(part.field for part in template_parts(self.template) if part.field is not None))
        return (self.messages_field or self.text_field,)

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Each domain that the source's documents may belong to, once."""
        if self.domain is not None:
            return (self.domain,)
        return tuple(dict.fromkeys(name for name in self.domains.values() if name is not None))

    @property
    def reads_standard_library(self) -> bool:
        """Whether the text is the standard library of the running Python."""
        return self.reader.startswith("python-")


class Recipe(Section):
    """A corpus, and how it is cut into rows."""

    name: str
    """The dataset's name."""
    licence: str | None = None
    """The licence of every source that does not set its own. Required unless each source sets one."""
    seq_len: Positive
    """Targets per row; rows hold seq_len + 1 tokens."""
    tokenizer: TokenizerSection
    """Where the tokenizer comes from."""
    bos: Bos = "none"
    """Where rows have the tokenizer's BOS. document: before each document; rows are cut through the documents all the
    same, so a row that begins inside a document begins without BOS. row: each row begins with BOS, and rows share no
    token."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """The sources, in the order in which they are read."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of groups that go to the `heldout` split, chosen by the hash of the group."""
    split_seed: NonNegative = 0
    """Seed of the division into train and heldout."""
    part_bytes: Positive = 64_000_000
    """Files are joined into one part up to this size. A part is written, retried and resumed as a whole. A larger file
    is divided into parts of about this size where possible (jsonl, parquet, text with a separator); otherwise (.gz,
    .zst, one document) it is one part."""
    shard_bytes: Annotated[int, Field(gt=0, lt=2**32)] = 64_000_000
    """Size, before compression, at which a part starts another shard file."""
    compression: Literal["zstd"] | None = None
    """Compression of the shards; null is fastest to read."""

    @model_validator(mode="after")
    def _every_source_has_a_licence(self) -> "Recipe":
        without = [name for source in self.sources if self.licence_of(source) is None for name in source.domain_names]
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
        """Each domain once, in the order of the sources. Its index is its number in the dataset."""
        return tuple(dict.fromkeys(name for source in self.sources for name in source.domain_names))

    @property
    def has_target_mask(self) -> bool:
        """Whether rows carry `target_mask`: a source has conversations of which only some tokens are trained on."""
        return any(source.chat_format is not None for source in self.sources)

    def licence_of(self, source: Source) -> str | None:
        """The licence of a source's text; never None in a checked recipe."""
        return source.licence or self.licence
