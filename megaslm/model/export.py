"""Weights, configuration and tokenizer as a Hugging Face folder, checked by opening it with transformers alone."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from megaslm.config.recipe import Bos
from megaslm.errors import ModelError
from megaslm.files import abandon_folder, finish_folder, new_folder, start_folder
from megaslm.model.folder import HEAD, in_both_spellings, read_config
from megaslm.model.selective_lm import CausalLM
from megaslm.tokenizer.bos import require_bos_id
from megaslm.tokenizer.plain_folder import write_plain_folder
from megaslm.tokenizer.tokenizer import FolderEncoder, load_tokenizer

_TRIED_TOKENS = 8
_TOLERANCE_NATS = 1e-3
_SHOWN_IDS = 8
# The last one stands beside `rope_parameters` for release 4 only.
_OF_THE_FILE = ("_name_or_path", "architectures", "transformers_version", "partial_rotary_factor")
# Text on which tokenizers differ: kinds of spaces, line ends, combining characters, characters with two forms, joined
# emoji, digits, signs, other scripts, unused code points, and the signs for a space or a byte in vocabularies.
_SAMPLE = (
    "The river bank, don't you see: it's 12 or 3,456.789 km!",
    " one space before,  two between,   three at the end   ",
    "\ttab\tand\n\nlines\r\nof\r\n\r\nWindows\x0b\x0c\x85\u2028\u2029",
    "no-break\u00a0space, thin\u2009space, zero\u200bwidth, ideographic\u3000space",
    "Ti\u1ebfng Vi\u1ec7t, Tie\u0302\u0301ng Vie\u0323\u0302t, caf\u00e9, cafe\u0301, \ufb01ne, \u212b",
    "\uff8a\uff9f\uff7f\uff7a\uff9d \uff76\uff9e, 日本語の文章。 你好，世界",
    "한국어 \u1112\u1161\u11ab, हिन्दी, العربية, ελληνικά, русский",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f600\U0001f600",
    "x_1 = (a+b)**2 / {c[0]}; // \u222b\u2211\u221a \u00bd \u00b2 \u20ac \u2014 \u2026 \u201cquoted\u201d",
    "\u2581marked <0x0A> \u0120byte\u010a \ufeff\ufffd \ue000",
    "camelCase HTTPServer snake_case ALLCAPS aaaaaaaaaaaaaaaa 0000000000000000",
    "",
)
_WRAPPER = "lm."
_NOTHING: Mapping[str, str] = MappingProxyType({})
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_ROWS = "rows.json"
"""The file of a description that says where the rows had BOS."""


class Opened(NamedTuple):
    """What transformers reads from a model: its configuration, and the loss of a few tokens in nats."""

    settings: dict[str, Any]
    loss: float

    @classmethod
    def of(cls, lm: CausalLM) -> "Opened":
        """Inspects a model on the host, in evaluation mode."""
        settings = {key: value for key, value in lm.config.to_dict().items() if key not in _OF_THE_FILE}
        return cls(settings, _loss(lm))


def require_same_ids(folder: Path, tokenizer: Path) -> None:
    """Raise ModelError unless AutoTokenizer, from `folder`, gives the same ids as the dataset's tokenizer."""
    with _refusing_files(tokenizer):
        opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    encoder = FolderEncoder(tokenizer)
    named = tuple(f"a {token}b {token} c" for token in opened.all_special_tokens)
    for text in (*_SAMPLE, *named):
        expected = encoder.encode([text])[0].tolist()
        with _refusing_files(tokenizer):
            found = opened(text, add_special_tokens=False, split_special_tokens=text in named)["input_ids"]
        if found != expected:
            first = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
            raise ModelError(
                f"{tokenizer}: AutoTokenizer opens this tokenizer beside this model as {type(opened).__name__}, which "
                f"gives {text!r} the ids {found[first : first + _SHOWN_IDS]} from token {first} on; the rows have "
                f"{expected[first : first + _SHOWN_IDS]}: scripts would use the export with wrong ids; use the "
                "tokenizer that belongs to the model's architecture, or another architecture"
            )


def _require_same_bos(folder: Path, description: Path) -> None:
    """Raise ModelError unless AutoTokenizer, from `folder`, puts BOS before a text exactly if rows had BOS.

    `description` is that of the model. One of an earlier build does not say what rows had.
    """
    bos = _bos_of_rows(description)
    if bos is None:
        return
    expected = [] if bos == "none" else [require_bos_id(description, load_tokenizer(description))]
    opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    plain = opened("a", add_special_tokens=False)["input_ids"]
    found = opened("a")["input_ids"]
    if found != [*expected, *plain]:
        raise ModelError(
            f"{description}: AutoTokenizer opens this tokenizer beside this model as {type(opened).__name__}, which "
            f"makes {found} of a text of the ids {plain}; the rows (bos: {bos}) have {[*expected, *plain]}: use the "
            "tokenizer that belongs to the model's architecture, or another architecture"
        )


def require_same_model(folder: Path, expected: Opened) -> None:
    """Raise ModelError unless AutoModelForCausalLM, from `folder`, gives the expected model."""
    lm = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    found = Opened.of(lm.eval())
    keys = sorted(expected.settings.keys() | found.settings.keys())
    different = [key for key in keys if expected.settings.get(key) != found.settings.get(key)]
    if different:
        read = "; ".join(f"{key} = {found.settings.get(key)}, not {expected.settings.get(key)}" for key in different)
        raise ModelError(f"{folder}: AutoModelForCausalLM reads {read}; report it with the config.json")
    if not abs(found.loss - expected.loss) <= _TOLERANCE_NATS * max(1.0, abs(expected.loss)):
        raise ModelError(
            f"{folder}: when AutoModelForCausalLM opens it, its loss on the same tokens is {found.loss:.4f} nats, that "
            f"of the trained model {expected.loss:.4f}; report it with the config.json"
        )


@contextmanager
def _refusing_files(tokenizer: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers and its dependencies raise any exception for unexpected files.
        raise ModelError(
            f"{tokenizer}: AutoTokenizer cannot use the tokenizer: {type(error).__name__}: {error}; correct "
            "tokenizer_config.json"
        ) from error


@torch.no_grad()
def _loss(lm: CausalLM) -> float:
    """The loss of tokens spread over the vocabulary, in nats."""
    ids = torch.arange(1, _TRIED_TOKENS + 2) * (lm.config.vocab_size - 1) // (_TRIED_TOKENS + 2)
    logits = lm(ids[None, :-1], use_cache=False).logits[0]
    return float(F.cross_entropy(logits.float(), ids[1:]))


def describe_model(
    lm: CausalLM, dtype: torch.dtype, tokenizer: Path, folder: Path, *, pretrained: Path | None, bos: Bos
) -> None:
    """Writes to `folder` what an export needs besides weights: config.json with their dtype, the tokenizer, and where
    the rows had BOS.

    A folder that has this content already is left as it is, so that checkpoints can be exported at any time.

    Args:
        lm: the model.
        dtype: of the exported weights.
        tokenizer: the folder of the dataset's tokenizer.
        folder: the folder to write.
        pretrained: the folder that the model was loaded from, which has the generation configuration; None without one.
        bos: where the rows that the model is trained on have BOS. If they have, config.json names it.

    Raises:
        ModelError: transformers could not open an export, or would give texts other ids.
    """
    described = start_folder(folder)
    try:
        shutil.copytree(tokenizer, described, dirs_exist_ok=True)
        # The tokenizer's folder may have another model's generation configuration.
        (described / _GENERATION).unlink(missing_ok=True)
        if pretrained is not None and (pretrained / _GENERATION).is_file():
            _require_generation_config(pretrained)
            shutil.copyfile(pretrained / _GENERATION, described / _GENERATION)
        (described / _ROWS).write_text(json.dumps({"bos": bos}) + "\n", encoding="utf-8")
        if bos != "none":
            lm.config.bos_token_id = require_bos_id(tokenizer, load_tokenizer(tokenizer))
        lm.config.dtype = dtype
        lm.config.save_pretrained(described)
        is_there = folder.is_dir() and _content(folder) == _content(described)
        if not is_there:
            _try_tokenizer(described, tokenizer)
    except BaseException:
        abandon_folder(folder)
        raise
    if is_there:
        abandon_folder(folder)
    else:
        finish_folder(folder)


def save_hugging_face(
    weights: Mapping[str, Tensor], model_description: Path, output: Path, *, beside: Mapping[str, str] = _NOTHING
) -> None:
    """Writes `output` whole or not at all, after transformers has opened it and found the same model.

    Args:
        weights: of a `SelectiveLM`, on the host; shared weights once.
        model_description: a folder with the tokenizer's files and config.json, which names the dtype of the weights.
        output: the folder to write.
        beside: texts that are written into it, by the names of their files.

    Raises:
        ConfigError: no folder can be made at `output`.
        ModelError: the weights are not those of the described model; or transformers opens the folder as another model
            or gives texts other ids.
    """
    lm = model_of(weights, model_description, output)
    with new_folder(output) as folder:
        seen = Opened.of(lm)
        lm.save_pretrained(folder)
        del lm
        _describe(model_description, folder)
        for name, text in beside.items():
            (folder / name).write_text(text, encoding="utf-8")
        require_same_ids(folder, model_description)
        _require_same_bos(folder, model_description)
        require_same_model(folder, seen)


def model_of(weights: Mapping[str, Tensor], model_description: Path, place: Path) -> CausalLM:
    """The model of a checkpoint's weights, on the host, in evaluation mode and with transformers' attention.

    Args:
        weights: of a `SelectiveLM`, on the host; shared weights once.
        model_description: a folder with config.json, which names the dtype of the weights.
        place: what the model is made for, for messages.

    Raises:
        ModelError: the weights are not those of the described model.
    """
    config = read_config(model_description)
    config.tie_word_embeddings = config.tie_word_embeddings and f"{_WRAPPER}{HEAD}" not in weights
    # Parameters get no memory, because they come from the checkpoint. Buffers do.
    with init_empty_weights(include_buffers=False):
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    lm.tie_weights()
    once = {name for name, _ in lm.named_parameters()}
    again = {name for name, _ in lm.named_parameters(remove_duplicate=False)} - once
    state = {name.removeprefix(_WRAPPER): tensor.to(config.dtype) for name, tensor in weights.items()}
    expected = set(lm.state_dict()) - again
    if expected != set(state):
        different = ", ".join(sorted(expected ^ set(state))[:5])
        raise ModelError(f"{place}: the checkpoint's weights are not those of its model configuration: {different}")
    lm.load_state_dict(state, assign=True, strict=False)
    lm.tie_weights()
    return lm.eval()


def _describe(model_description: Path, folder: Path) -> None:
    """Adds all files but the weights, in forms that every supported transformers release reads."""
    config = in_both_spellings(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (model_description / _GENERATION).is_file():
        shutil.copyfile(model_description / _GENERATION, folder / _GENERATION)
    bos, names_bos = _bos_of_rows(model_description), config.get("bos_token_id") is not None
    # Earlier builds left what the tokenizer adds, if the model knew a BOS.
    before = None if names_bos else False
    puts_bos = before if bos is None else bos != "none"
    write_plain_folder(model_description, folder, names_bos=names_bos, puts_bos=puts_bos)
    for weights_file in folder.glob("*.safetensors"):
        # safetensors makes its files readable by the owner only.
        weights_file.chmod((folder / _CONFIG).stat().st_mode)


def _require_generation_config(folder: Path) -> None:
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and its dependencies raise any exception for unexpected values.
        raise ModelError(
            f"{folder / _GENERATION}: transformers cannot read the file: {type(error).__name__}: {error}; no script "
            "could open an export with it: correct the file or remove it"
        ) from error


def _try_tokenizer(described: Path, tokenizer: Path) -> None:
    """Raises ModelError where an export of the model would give texts other ids than the dataset's tokenizer."""
    trial = start_folder(described / "trial")
    try:
        shutil.copyfile(described / _CONFIG, trial / _CONFIG)
        _describe(described, trial)
        require_same_ids(trial, tokenizer)
        _require_same_bos(trial, described)
    finally:
        abandon_folder(described / "trial")


def _bos_of_rows(description: Path) -> Bos | None:
    """Where the rows of a run had BOS; None if the description is of an earlier build, which did not say so."""
    path = description / _ROWS
    return json.loads(path.read_text(encoding="utf-8"))["bos"] if path.is_file() else None


def _content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
