"""The added and special tokens that a tokenizer's folder defines, read as transformers reads them.

tokenizer.json is one of five files. tokenizer_config.json, special_tokens_map.json and added_tokens.json may define
other special tokens and flags, and the EOS may be in a model's config.json only. Which tokens are special affects ids,
because the names of special tokens in a text are encoded as text.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from megaslm.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_MODEL_CONFIGS = ("config.json", "generation_config.json")
_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TOKENIZER_FILES = (TOKENIZER_FILE, _CONFIG, _MAP, _ADDED, "chat_template.jinja", *_MODEL_CONFIGS)
"""The files of a tokenizer's folder."""


def special_id(folder: Path, tokenizer: Tokenizer, kind: str) -> int | None:
    """The id of the `eos` or `bos` token: by its name or, where no file names it, the first id in a model's config.

    `tokenizer` is the folder's tokenizer.json. Raises DataError for a name or an id that it lacks, and where two files
    name different tokens.
    """
    names = _Names.of(folder)
    key = f"{kind}_token"
    said = [each[key] for each in (names.named, names.passed_over) if key in each]
    found = {_id_of(folder, tokenizer, key, named) for named in (said[:1] if names.replaces_own else said)}
    if len(found) > 1:
        listed = " and ".join(f"{named.token.content!r} in {named.file}" for named in said)
        raise DataError(f"{folder}: {key} is {listed}; name the same token in both files")
    if found:
        return found.pop()
    for file in _MODEL_CONFIGS:
        stated = _id_in(folder / file, f"{kind}_token_id")
        if stated is not None:
            if tokenizer.id_to_token(stated) is None:
                raise DataError(
                    f"{folder / file}: {kind}_token_id {stated} is not an id in the {TOKENIZER_FILE} beside it: it "
                    f'belongs to another tokenizer; name the token as "{kind}_token" in {_CONFIG}, or correct the id'
                )
            return stated
    return None


def named_tokens(folder: Path) -> dict[str, str]:
    """The folder's special tokens, by role: `eos_token` and the like."""
    return {key: named.token.content for key, named in _Names.of(folder).named.items()}


def require_eos(folder: Path, tokenizer: Tokenizer) -> int:
    """The id of the EOS token. Raises DataError where no file of the folder names one that tokenizer.json holds."""
    found = special_id(folder, tokenizer, "eos")
    if found is None:
        raise DataError(
            f"{folder}: no EOS token in {', '.join((_CONFIG, _MAP, *_MODEL_CONFIGS))}; documents cannot be separated "
            f'without one: add "eos_token" to {_CONFIG}'
        )
    return found


def apply_folder_tokens(folder: Path, tokenizer: Tokenizer, eos_id: int | None) -> None:
    """Give `tokenizer`, a folder's tokenizer.json, the added tokens that all files of the folder define together. The
    token `eos_id` is always special.

    Raises DataError for a file that cannot be right, and where one lists a token that tokenizer.json lacks and that
    could occur in text.
    """
    names = _Names.of(folder)
    own = {number: _copy(token) for number, token in tokenizer.get_added_tokens_decoder().items()}
    listed = names.listed if names.replaces_own else {**names.listed, **own}
    special = {named.token.content for named in names.named.values()}
    tokens = [_special_if(token.content in special, token) for _, token in sorted(listed.items())]
    there = {token.content for token in (*own.values(), *tokens)}
    tokens += [_special_if(True, named.token) for named in names.named.values() if named.token.content not in there]
    tokens += [token for token in names.extra if token.content not in there]
    for token in tokens:
        if not token.special and tokenizer.token_to_id(token.content) is None:
            raise DataError(
                f"{folder}: the token {token.content!r} is listed beside {TOKENIZER_FILE}, which lacks it, so that its "
                "id is not known; save the tokenizer again with transformers "
                "(PreTrainedTokenizerFast.from_pretrained and save_pretrained), or remove it from the list"
            )
    tokenizer.add_tokens(tokens)
    eos = tokenizer.get_added_tokens_decoder().get(-1 if eos_id is None else eos_id)
    if eos is not None and not eos.special:
        tokenizer.add_tokens([_special_if(True, eos)])


def require_stated_ids(folder: Path, tokenizer: Tokenizer) -> None:
    """Raise DataError where tokenizer.json lists an added token with another id than the library assigns."""
    path = folder / TOKENIZER_FILE
    for stated in _objects(path, "added_tokens", read_object(path).get("added_tokens") or []):
        content, found = stated.get("content"), tokenizer.token_to_id(str(stated.get("content")))
        if content and found != stated.get("id"):
            raise DataError(
                f"{path}: the added token {content!r} is listed with the id {stated.get('id')}, and `tokenizers` gives "
                f"it {found}: ids of added tokens must continue the vocabulary's, without gaps; correct the list"
            )


def require_told_apart(folder: Path, tokenizer: Tokenizer) -> None:
    """Raise DataError where the normaliser makes one text of two added tokens. The library then chooses one of them by
    the order of a hash table, which differs between processes. `tokenizer` is as texts are encoded with it."""
    if tokenizer.normalizer is None:
        return
    by_text: dict[str, list[AddedToken]] = {}
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.normalized:
            by_text.setdefault(tokenizer.normalizer.normalize_str(token.content), []).append(token)
    for tokens in by_text.values():
        # Special tokens are encoded as text, whichever is found.
        if len(tokens) > 1 and not all(token.special for token in tokens):
            names = " and ".join(repr(token.content) for token in tokens)
            raise DataError(
                f"{folder}: the normaliser makes one text of the added tokens {names}, so that a text gets the one or "
                'the other by chance; give all but one of them "normalized": false, or remove them'
            )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where the file does not exist. Raises DataError where it holds anything else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON in UTF-8: {error}; copy the file again, or remove it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; copy the file again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {type(content).__name__}; expected an object: copy the file again")
    return content


def _id_of(folder: Path, tokenizer: Tokenizer, key: str, named: "_Named") -> int:
    found = tokenizer.token_to_id(named.token.content)
    if found is None:
        raise DataError(
            f"{folder / named.file}: {key} {named.token.content!r} is not in the vocabulary of {TOKENIZER_FILE}; name "
            "a token that it holds"
        )
    return int(found)


@dataclass(frozen=True)
class _Named:
    """A special token that a file names by its role, for example as its `eos_token`."""

    token: AddedToken
    file: str


@dataclass(frozen=True)
class _Names:
    """The definitions in the files beside tokenizer.json."""

    named: dict[str, _Named]
    """By role, `eos_token` and the like. These are special whatever their flags are."""
    passed_over: dict[str, _Named]
    """The names in the file that transformers ignores as outdated."""
    extra: tuple[AddedToken, ...]
    """Further special tokens."""
    listed: dict[int, AddedToken]
    """Added tokens with their flags, by the id in the file."""
    replaces_own: bool
    """Whether `listed` replaces tokenizer.json's list instead of extending it."""

    @classmethod
    def of(cls, folder: Path) -> "_Names":
        """special_tokens_map.json is outdated where tokenizer_config.json lists the added tokens. Otherwise its entries
        replace those of tokenizer_config.json."""
        config, map_ = read_object(folder / _CONFIG), read_object(folder / _MAP)
        in_config, in_map = _named(folder / _CONFIG, config), _named(folder / _MAP, map_)
        decoder = config.get("added_tokens_decoder")
        if decoder is not None:
            extra = tuple(_extra(folder / _CONFIG, config))
            return cls(in_config, in_map, extra, _decoded(folder / _CONFIG, decoder), replaces_own=True)
        named = {**{key: token for key, token in in_config.items() if key not in map_}, **in_map}
        extra = (*_extra(folder / _CONFIG, config), *_extra(folder / _MAP, map_))
        special = {token.content for token in (*(each.token for each in named.values()), *extra)}
        return cls(named, in_config, extra, _legacy(folder / _ADDED, special), replaces_own=False)


def _named(path: Path, content: dict[str, Any]) -> dict[str, _Named]:
    more = content.get(_EXTRA[0])
    values = {**content, **(more if isinstance(more, dict) else {})}
    return {
        key: _Named(_token(path, key, value), path.name)
        for key, value in values.items()
        if key in _NAMED or (key.endswith("_token") and isinstance(value, str | dict))
        if value not in (None, "")
    }


def _extra(path: Path, content: dict[str, Any]) -> Iterator[AddedToken]:
    key = next((key for key in _EXTRA if content.get(key)), _EXTRA[0])
    values = content.get(key) or []
    if not isinstance(values, list | dict):
        raise DataError(f"{path}: {key} is {values!r}; expected a list of tokens")
    yield from (_special_if(True, _token(path, key, value)) for value in values if isinstance(values, list))


def _decoded(path: Path, decoder: object) -> dict[int, AddedToken]:
    if not isinstance(decoder, dict) or not all(re.fullmatch("[0-9]{1,10}", key) for key in decoder):
        raise DataError(f"{path}: added_tokens_decoder is no object of ids and tokens; copy the file again")
    return {int(key): _token(path, f"added_tokens_decoder.{key}", value) for key, value in decoder.items()}


def _legacy(path: Path, special: set[str]) -> dict[int, AddedToken]:
    listed = {}
    for content, number in read_object(path).items():
        if type(number) is not int:
            raise DataError(f"{path}: {content!r} has the id {number!r}; expected a number: copy the file again")
        _require_characters(path, content)
        is_special = content in special
        listed[number] = AddedToken(content, normalized=not is_special, special=is_special)
    return listed


def _token(path: Path, key: str, value: object) -> AddedToken:
    """A token is written as its name, or as an object with the name as `content` and flags."""
    content = value.get("content") if isinstance(value, dict) else value
    if isinstance(content, str):
        _require_characters(path, content)
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in _FLAGS if name in value}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(value["content"], **flags)
    raise DataError(
        f"{path}: {key} is {value!r}; expected a token's name, or an object with `content` and flags that are true or "
        "false"
    )


def _require_characters(path: Path, content: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise DataError(f"{path}: the token {content!r} holds half of a surrogate pair; correct it or remove it")


def _objects(path: Path, key: str, values: object) -> list[dict[str, Any]]:
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        return values
    raise DataError(f"{path}: {key} is no list of objects; copy the file again")


def _id_in(path: Path, key: str) -> int | None:
    value = read_object(path).get(key)
    stated: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(number) is not int or not 0 <= number < 2**32 for number in stated):
        raise DataError(f"{path}: {key} is {value!r}; expected an id, or a list of ids: correct it or remove it")
    return stated[0] if stated else None


def _special_if(is_special: bool, token: AddedToken) -> AddedToken:
    copied = _copy(token)
    copied.special = token.special or is_special
    return copied


def _copy(token: AddedToken) -> AddedToken:
    return AddedToken(token.content, **{flag: getattr(token, flag) for flag in _FLAGS})
