"""The files of a dataset's tokenizer, as its manifest records them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.manifest import Manifest
from megaslm.data.tokenizing.folder_tokens import TOKENIZER_FILE
from megaslm.data.tokenizing.tokenizer import tokenizer_facts


def tokenizer_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a tokenizer's folder, by its path in there, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_tokenizer(folder: Path, manifest: Manifest) -> Iterator[Damaged]:
    """Everything in which the tokenizer in `folder` is not the manifest's: its files, then what they mean."""
    found = tokenizer_files(folder)
    changed = [name for name, sha256 in manifest.tokenizer_files.items() if found.get(name) != sha256]
    for name in changed:
        stated = manifest.tokenizer_files[name][:12]
        state = f"has the SHA-256 {found[name][:12]}" if name in found else "is missing"
        yield Damaged(folder / name, f"{state}; the manifest lists it with {stated}")
    if not changed:
        facts = tokenizer_facts(folder)
        meant = {
            "meaning (SHA-256)": (facts.sha256[:12], manifest.tokenizer_sha256[:12]),
            "ids (SHA-256)": (facts.ids_sha256[:12], (manifest.ids_sha256 or facts.ids_sha256)[:12]),
            "vocabulary": (facts.vocab_size, manifest.vocab_size),
            "EOS id": (facts.eos_id, manifest.eos_id),
            "BOS id": (facts.bos_id, manifest.bos_id),
        }
        for what, (has, expected) in meant.items():
            if has != expected:
                yield Damaged(folder / TOKENIZER_FILE, f"has as its {what} {has}, the manifest says {expected}")
