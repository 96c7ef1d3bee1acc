"""A dataset of a few known documents, packed as `prepare` packs them, with losses that name their target."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megaslm.config.recipe import Bos
from megaslm.dataset.folder import tokenizer_files
from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import TOKENIZER, DomainSplit, Manifest, Packing, Part, Reference, write_manifest
from megaslm.dataset.packing import RowPacker
from megaslm.dataset.shards import RowFormat, part_name, part_writer
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import load_tokenizer, tokenizer_facts

SEQ_LEN, BOS_ID, EOS_ID = 8, 1, 2
DOCUMENTS = {
    "a": (("abcdefghijkl", "mnop", "qrstuvwxyz"), ("ab\tcd\n", "é𝄞")),
    "b": (("zyxwvuts", "rqponm", "lkjihg"),),
}
"""Of each domain its parts, and of each part its texts."""


@dataclass(frozen=True)
class Inspected:
    """The dataset, and the ids that its parts were packed from."""

    folder: Path
    streams: dict[tuple[str, int], list[int]]
    """Domain and part to every id, an EOS after each document, without padding."""


def make_bytes_tokenizer(folder: Path) -> None:
    """A token a byte, after three special ones; EOS is the last of these."""
    folder.mkdir(parents=True)
    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def make_inspected(folder: Path, *, scored: bool, bos: Bos = "none") -> Inspected:
    """The loss of target i of a part, counted over its rows, is i / 4 nats; the entropy twice that.

    The tokenizer names a BOS where rows have one.
    """
    make_bytes_tokenizer(folder / TOKENIZER)
    if bos != "none":
        (folder / TOKENIZER / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(folder / TOKENIZER)
    facts = tokenizer_facts(folder / TOKENIZER)
    row_format = RowFormat(SEQ_LEN, facts.vocab_size, scored=scored, entropy=scored)
    domains: dict[str, DomainSplit] = {}
    streams: dict[tuple[str, int], list[int]] = {}
    for number, (domain, of_parts) in enumerate(DOCUMENTS.items()):
        parts: list[Part] = []
        targets = 0
        for place, texts in enumerate(of_parts):
            ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
            streams[domain, place] = [token for document in ids for token in (*document, EOS_ID)]
            packer = RowPacker(SEQ_LEN, EOS_ID, bos=bos, bos_id=facts.bos_id)
            rows = np.concatenate([packer.add(ids), packer.finish()]).astype(row_format.tokens_dtype)
            losses = (np.arange(rows.shape[0] * SEQ_LEN).reshape(-1, SEQ_LEN) / 4).astype(np.float16)
            losses[rows[:, :-1] == EOS_ID] = 0
            with part_writer(folder / "train" / domain / part_name(place), row_format) as writer:
                writer.write(rows, number, losses if scored else None, losses * 2 if scored else None)
            parts.append(writer.part)
            targets += int(valid_targets(rows, EOS_ID).sum())
        rows_in_all = merge_index(folder / "train" / domain, parts)
        documents = sum(map(len, of_parts))
        domains[domain] = DomainSplit(rows=rows_in_all, tokens=targets, documents=documents, parts=tuple(parts))
    reference = Reference(
        weights_sha256="ab" * 32, name="ref", precision="fp32", document_isolation=True, window=SEQ_LEN,
        stride=SEQ_LEN, batch_rows=8, dataset_sha256="", entropy=True,
    )  # fmt: skip
    manifest = Manifest(
        kind="scored" if scored else "tokens", name="alphabet", megaslm_version="0", recipe_sha256="",
        seq_len=SEQ_LEN, vocab_size=facts.vocab_size, tokenizer_sha256=facts.sha256,
        tokenizer_files=tokenizer_files(folder / TOKENIZER), eos_id=EOS_ID, bos_id=facts.bos_id,
        packing=Packing.with_bos(bos), domains=tuple(DOCUMENTS),
        licences={"a": "CC0", "b": "MIT"}, splits={"train": domains}, sources=(),
        reference=reference if scored else None,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return Inspected(folder, streams)


def below_the_title(shown: str) -> str:
    """What is shown of a dataset but its first line, which is ruled as far as the folder's name leaves room."""
    return shown.partition("\n")[2]
