"""docs/inputs.md: what is carried over of a tokenizer, what is refused, and by which rule."""

import io
import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, models

from megaslm.config.recipe import Recipe
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.preparing.prepare import prepare
from megaslm.tokenizer.sentencepiece_export import ORIGINAL
from tests.doc_tables import require_table

PIECES = [*"abc </s>x", "ab", "</", "</s", "</s>"]
EOS, NEW = {"id": 12, "content": "</s>"}, {"id": 13, "content": "<x>"}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
TEXTS = ["ab </s> <x>c", "cab"]
VIETNAMESE = "Tiếng Việt rất đẹp và phở rất ngon"
CORPUS = [VIETNAMESE, "パソコン ガイド", "the river bank grinds corn for bread", "a <b> [CLS] ▁"]
BY_NAME = "EOS is the token that tokenizer_config.json and special_tokens_map.json name"
LISTS = "`added_tokens_decoder` decides if it is there; otherwise special_tokens_map.json takes precedence"
LOOKED_UP = "an id in a file must be the id of a token in tokenizer.json"
TEXT = "names of special tokens in a text are plain text; the name of EOS always is"
STORED = "the ids of a text never contain EOS"
JSON = "a file is a JSON object in UTF-8; a token is a name or an object with `content`"
TWIN = "the ids must be those of SentencePiece; where the model does not prove it, documents are compared"


def tokens(*added: dict[str, Any], special: bool = True) -> list[dict[str, Any]]:
    return [{**FLAGS, "special": special, **token} for token in added]


@dataclass
class Folder:
    """A Hugging Face folder, by what is unusual in it."""

    what: str
    rule: str
    added: list[dict[str, Any]] = field(default_factory=lambda: tokens(EOS))
    config: Any = field(default_factory=lambda: {"eos_token": "</s>"})
    files: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    merges: list[tuple[str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=lambda: TEXTS)

    def write(self, folder: Path) -> dict[str, str]:
        folder.mkdir()
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(PIECES))}
        state = json.loads(Tokenizer(models.BPE(vocabulary, self.merges)).to_str())
        state |= {"added_tokens": self.added, **self.state, "model": state["model"] | self.model}
        for name, content in {"tokenizer.json": state, "tokenizer_config.json": self.config, **self.files}.items():
            is_raw = isinstance(content, bytes)
            (folder / name).write_bytes(content if is_raw else json.dumps(content).encode())
        return {"huggingface": str(folder)}


@dataclass
class Model:
    """A SentencePiece model, by how it was trained."""

    what: str
    rule: str
    settings: dict[str, Any]
    texts: list[str]

    def write(self, folder: Path) -> dict[str, str]:
        model, path = io.BytesIO(), folder.with_suffix(".model")
        SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 20),
            model_writer=model,
            **{"vocab_size": 480, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2, **self.settings},
        )
        path.write_bytes(model.getvalue())
        return {"sentencepiece": str(path)}


SPELT = [("<", "/"), ("</", "s"), ("</s", ">")]
LISTED = {"eos_token": "</s>", "added_tokens_decoder": {"12": {"content": "</s>", "special": True}}}
WITH_PLAIN = tokens(EOS) + tokens(NEW, special=False)
FOLDERS = [
    Folder("EOS named in tokenizer_config.json", BY_NAME),
    Folder(
        "EOS named in special_tokens_map.json alone",
        BY_NAME,
        config={},
        files={"special_tokens_map.json": {"eos_token": "</s>"}},
    ),
    Folder("EOS as an object with `content`", BY_NAME, config={"eos_token": {"content": "</s>", **FLAGS}}),
    Folder("two files name different EOS tokens", BY_NAME, files={"special_tokens_map.json": {"eos_token": "a"}}),
    Folder(
        "two files name different EOS tokens, with `added_tokens_decoder`",
        LISTS,
        config=LISTED,
        files={"special_tokens_map.json": {"eos_token": "a"}},
    ),
    Folder("no EOS anywhere", BY_NAME, config={}),
    Folder("EOS missing in tokenizer.json", BY_NAME, config={"eos_token": "<end>"}),
    Folder("EOS with `special: false`", TEXT, added=tokens(EOS, special=False)),
    Folder(
        "EOS with `special: false`, named by config.json's id alone",
        TEXT,
        added=tokens(EOS, special=False),
        config={},
        files={"config.json": {"eos_token_id": 12}},
    ),
    Folder("EOS ids in a list", LOOKED_UP, config={}, files={"generation_config.json": {"eos_token_id": [12, 0]}}),
    Folder("EOS id beyond the vocabulary", LOOKED_UP, config={}, files={"config.json": {"eos_token_id": 50256}}),
    Folder("EOS id below 0", LOOKED_UP, config={}, files={"config.json": {"eos_token_id": -1}}),
    Folder("EOS id `true`", LOOKED_UP, config={}, files={"config.json": {"eos_token_id": True}}),
    Folder("EOS id 12.0", LOOKED_UP, config={}, files={"config.json": {"eos_token_id": 12.0}}),
    Folder("BOS id beyond the vocabulary", LOOKED_UP, files={"config.json": {"bos_token_id": 128000}}),
    Folder("the id of an added token leaves a gap", LOOKED_UP, added=tokens(EOS, {**NEW, "id": 40})),
    Folder("two added tokens with the same id", LOOKED_UP, added=tokens(EOS, {**NEW, "id": 12})),
    Folder("`pad_token` missing in tokenizer.json", TEXT, config={"eos_token": "</s>", "pad_token": "<pad>"}),
    Folder("a plain added token", LISTS, added=WITH_PLAIN),
    Folder(
        "a plain added token, special by `added_tokens_decoder`",
        LISTS,
        added=WITH_PLAIN,
        config={"eos_token": "</s>", "added_tokens_decoder": {"13": {"content": "<x>", "special": True}}},
    ),
    Folder(
        "a plain added token, special by special_tokens_map.json",
        LISTS,
        added=WITH_PLAIN,
        files={"special_tokens_map.json": {"pad_token": "<x>"}},
    ),
    Folder(
        "added_tokens.json lists a token of tokenizer.json",
        LISTS,
        added=WITH_PLAIN,
        files={"added_tokens.json": {"<x>": 13}},
    ),
    Folder(
        "added_tokens.json lists a token that tokenizer.json lacks", LISTS, files={"added_tokens.json": {"<x>": 13}}
    ),
    Folder("ordinary merges produce EOS from a text", STORED, merges=SPELT),
    Folder("EOS is an ordinary token", STORED, config={"eos_token": "a"}),
    Folder("dropout", "dropout is switched off", model={"dropout": 0.5}, merges=[("a", "b")]),
    Folder(
        "truncation and padding",
        "truncation and padding are switched off",
        state={"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
    ),
    Folder(
        "`tokenizer_class: LlamaTokenizerFast`, `add_prefix_space`",
        "ids come from tokenizer.json, whatever class is named",
        config={"eos_token": "</s>", "tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True},
    ),
    Folder(
        "`unk_token` missing in the vocabulary",
        "if `tokenizers` cannot encode a document, the document is refused",
        model={"unk_token": "<unk>"},
        texts=["a", "z"],
    ),
    Folder("tokenizer_config.json is not JSON", JSON, config=b'{"eos_token": '),
    Folder("tokenizer_config.json is Latin-1", JSON, config='{"eos_token": "é"}'.encode("latin-1")),
    Folder("special_tokens_map.json is a list", JSON, files={"special_tokens_map.json": ["</s>"]}),
    Folder("`eos_token` is a number", JSON, config={"eos_token": 12}),
    Folder("`added_tokens_decoder` is a list", JSON, config={"eos_token": "</s>", "added_tokens_decoder": ["</s>"]}),
    Folder("added_tokens.json maps to no ids", JSON, files={"added_tokens.json": {"<x>": "13"}}),
    Folder("tokenizer.json is not JSON", JSON, files={"tokenizer.json": b"version https://git-lfs"}),
    Folder("dropout of 1.5", "if `tokenizers` cannot read a file, the file is refused", model={"dropout": 1.5}),
]
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
BYTES = {"model_type": "bpe", "byte_fallback": True}
NFD = unicodedata.normalize("NFD", VIETNAMESE)
MODELS = [
    Model("BPE, identity normalisation", TWIN, {**BYTES, **IDENTITY}, [NFD, "ﾊﾟｿ\r\nb ▁\x00\uffff </s>"]),
    Model(
        "BPE, identity, dummy prefix (Llama-2)", TWIN, {**BYTES, **IDENTITY, "add_dummy_prefix": True}, [NFD, " ▁a\r\n"]
    ),
    Model("Unigram, identity", TWIN, {**IDENTITY}, [NFD, "<b> </s> <0x41>"]),
    Model("Unigram, identity; text has U+FFFF", TWIN, {**IDENTITY}, ["a\uffffb"]),
    Model("BPE, nmt_nfkc; plain text", TWIN, BYTES, [VIETNAMESE, "a – “b”"]),
    Model("BPE, nmt_nfkc; decomposed Vietnamese", TWIN, BYTES, ["a", NFD]),
    Model("Unigram, nmt_nfkc; half-width kana", TWIN, {}, ["a", "ﾊﾟｿｺﾝ ｶﾞｲﾄﾞ"]),
    Model("BPE, nmt_nfkc, spaces kept; CRLF", TWIN, {**BYTES, "remove_extra_whitespaces": False}, ["a\r\nb\r\n\r\nc"]),
    Model("BPE, extra spaces removed; text ends in ▁", TWIN, BYTES, ["a▁"]),
    Model("BPE with a user-defined piece", TWIN, {**BYTES, **IDENTITY, "user_defined_symbols": ["<b>"]}, ["a <b>c"]),
    Model(
        "BPE with a user-defined piece, extra spaces removed",
        TWIN,
        {**BYTES, **IDENTITY, "remove_extra_whitespaces": True, "user_defined_symbols": ["<b>"]},
        ["a <b> c"],
    ),
    Model(
        "Unigram; a text contains the name of a control symbol",
        TWIN,
        {**IDENTITY, "control_symbols": ["[CLS]"]},
        ["a [CLS] b"],
    ),
    Model(
        "BPE with custom normalisation rules (oo → ö)", TWIN, {**BYTES, "normalization_rule_tsv": "oo.tsv"}, ["book"]
    ),
    Model("character model", "only BPE and Unigram can be exported exactly", {"model_type": "char"}, ["a"]),
    Model("no EOS piece", "EOS must exist, because it separates documents", {**BYTES, "eos_id": -1}, ["a"]),
]


def outcome(origin: dict[str, str], texts: list[str], folder: Path) -> str:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text(lines, encoding="utf-8")
    source = {"domain": "web", "reader": "jsonl", "paths": [str(folder / "text.jsonl")]}
    common = {"name": "table", "licence": "CC0", "seq_len": 1, "heldout_fraction": 0}
    recipe = Recipe.model_validate({**common, "tokenizer": origin, "sources": [source]})
    try:
        manifest = prepare(recipe, folder / "dataset", workers=1)
    except DataError as error:
        document = re.search(r"text\.jsonl, line \d+", str(error))
        named = document[0] if document else re.search(r"[a-z_]+\.(json|model)\b", str(error))
        return f"refused: {named if isinstance(named, str) else named[0] if named else 'the folder'}"
    reader = RowReader(folder / "dataset", "train", "web")
    ids = reader.rows(0, len(reader))["tokens"][:, 1:].ravel().tolist()
    assert ids.count(manifest.eos_id) == len(texts)
    compared = (folder / "dataset" / "tokenizer" / ORIGINAL).is_file()
    if "sentencepiece" in origin:
        return (
            "accepted; documents with unusual characters are compared" if compared else "accepted; equal ids are proved"
        )
    return f"accepted; EOS {manifest.eos_id}, {manifest.splits['train']['web'].tokens} tokens"


def test_the_table_of_tokenizers_is_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("oo.tsv").write_text("6F 6F\tF6\n")
    rows = []
    for number, member in enumerate([*FOLDERS, *MODELS]):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        kind = "folder" if isinstance(member, Folder) else "SentencePiece"
        found = outcome(member.write(folder / "given"), member.texts, folder)
        rows.append((kind, member.what, found, member.rule))
    require_table("inputs.md", "tokenizers", ("tokenizer", "what is in it", "outcome", "rule"), rows)
