"""A tokenizer's folder that any script can open: AutoTokenizer gives the same ids as the dataset."""

import json
import shutil
from pathlib import Path

from megaslm.tokenizer.bos import put_bos, require_bos_id
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE, named_tokens, read_object
from megaslm.tokenizer.sentencepiece_export import ORIGINAL
from megaslm.tokenizer.tokenizer import text_tokenizer

_CONFIG = "tokenizer_config.json"
# tokenizer.json says how a text becomes ids. A second definition would be applied twice, or differently. The keys here
# only say how a tokenizer is used.
_KEPT = (
    "chat_template",
    "clean_up_tokenization_spaces",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
# Settings of a pre-tokeniser: transformers 4 replaces them by those of the configuration, and missing ones by false.
_SAID_TWICE = ("add_prefix_space",)
# The SentencePiece model is copied too, so that texts are compared with it when the folder makes another dataset.
_AS_THEY_ARE = ("chat_template.jinja", ORIGINAL)
# transformers 4 and 5 read it as it is. The class of a model's usual tokenizer is rebuilt from the vocabulary.
_CLASS = "PreTrainedTokenizerFast"


def write_plain_folder(tokenizer: Path, folder: Path, *, names_bos: bool, puts_bos: bool | None) -> None:
    """Write the tokenizer of a dataset's folder to another folder, in files that all transformers releases read alike.

    Args:
        tokenizer: the folder of a dataset's tokenizer.
        folder: where to write; other files in it stay.
        names_bos: whether the model knows a BOS. If not, none is defined, unless it is also the EOS.
        puts_bos: whether BOS, and no other token, is put before a text. If not, no token is added to a text. None
            leaves what the tokenizer adds.

    Raises:
        DataError: `tokenizer` cannot be read, or has no BOS to be put before texts.
    """
    made = text_tokenizer(tokenizer)
    made.no_padding()
    made.no_truncation()
    named = named_tokens(tokenizer)
    if puts_bos:
        bos_id = require_bos_id(tokenizer, made)
        put_bos(made, bos_id)
        named["bos_token"] = str(made.id_to_token(bos_id))
    elif puts_bos is False and made.num_special_tokens_to_add(is_pair=False):
        made.post_processor = None
    made.encode_special_tokens = False
    made.save(str(folder / TOKENIZER_FILE))
    pre_tokenizer = read_object(folder / TOKENIZER_FILE).get("pre_tokenizer") or {}
    stated = read_object(tokenizer / _CONFIG)
    if not names_bos and named.get("bos_token") != named.get("eos_token"):
        named.pop("bos_token", None)
    config = {
        "tokenizer_class": _CLASS,
        **named,
        **{key: stated[key] for key in _KEPT if key in stated},
        **{key: pre_tokenizer[key] for key in _SAID_TWICE if key in pre_tokenizer},
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in _AS_THEY_ARE:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
