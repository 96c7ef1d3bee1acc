"""BOS: which tokenizers put one before a text, and making a tokenizer do so."""

import re
from pathlib import Path

from tokenizers import Tokenizer, processors

from megaslm.config.recipe import Bos
from megaslm.errors import DataError
from megaslm.tokenizer.folder_tokens import named_tokens, read_object, special_id
from megaslm.tokenizer.tokenizer import TokenizerFacts, load_tokenizer

_CONFIG = "tokenizer_config.json"
# In a template, these characters of a token's name would be read as syntax.
_SYNTAX = re.compile(r"[\s:$]")


def require_bos(bos: Bos, facts: TokenizerFacts) -> None:
    """Raise DataError where rows cannot have BOS as a recipe's `bos` says: the tokenizer has none, or it is EOS."""
    if bos == "none":
        return
    if facts.bos_id is None:
        raise DataError(
            f'bos: {bos}: the tokenizer has no BOS; name the token as "bos_token" in its {_CONFIG}, or set bos: none'
        )
    if facts.bos_id == facts.eos_id:
        raise DataError(
            f"bos: {bos}: the tokenizer's BOS is its EOS, {facts.eos_id}, which ends documents, so that the bounds of "
            "documents could not be found; set bos: none, or use a tokenizer with a BOS of its own"
        )


def require_bos_id(folder: Path, tokenizer: Tokenizer) -> int:
    """The id of a folder's BOS; `tokenizer` is its tokenizer.json. Raises DataError where no file of it names one."""
    found = special_id(folder, tokenizer, "bos")
    if found is None:
        raise DataError(f'{folder}: names no BOS token; add "bos_token" to its {_CONFIG}')
    return found


def puts_bos(folder: Path, eos_id: int) -> bool:
    """Whether the tokenizer of a folder with a tokenizer.json puts a BOS before a text.

    `add_bos_token` of tokenizer_config.json decides; without it, the post-processor of tokenizer.json. A token at the
    front that is EOS does not count.
    """
    stated, names = read_object(folder / _CONFIG).get("add_bos_token"), named_tokens(folder)
    if isinstance(stated, bool) and "bos_token" in names:
        return stated and names["bos_token"] != names.get("eos_token")
    tokenizer = load_tokenizer(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.encode("").ids[:1] not in ([], [eos_id])


def put_bos(tokenizer: Tokenizer, bos_id: int) -> None:
    """Make `tokenizer` put BOS, and no other token, before a single text."""
    if tokenizer.encode("").ids == [bos_id]:
        return
    name = str(tokenizer.id_to_token(bos_id))
    called = "BOS" if _SYNTAX.search(name) else name
    template = processors.TemplateProcessing(
        single=f"{called}:0 $A:0",
        pair=f"{called}:0 $A:0 {called}:1 $B:1",
        special_tokens=[{"id": called, "ids": [bos_id], "tokens": [name]}],
    )
    before = tokenizer.post_processor
    adds_nothing = before is not None and not tokenizer.num_special_tokens_to_add(is_pair=False)
    tokenizer.post_processor = processors.Sequence([before, template]) if adds_nothing else template
