"""A folder's ids are those of transformers, whatever its files say of added tokens."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from megaslm.errors import DataError
from megaslm.tokenizer.tokenizer import FolderEncoder, tokenizer_facts

PIECES = [*"abcx <>/s|", "ab", "</", "</s", "</s>"]
MERGES = [("a", "b"), ("<", "/"), ("</", "s"), ("</s", ">")]
NAMES = ["</s>", "<s>", "<x>", "<x>b", "x>", "|"]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
texts = st.lists(st.sampled_from([*NAMES, "ab", "a", " ", "c"]), max_size=8).map("".join)
flags = st.fixed_dictionaries(dict.fromkeys((*FLAGS, "special"), st.booleans()))
Files = dict[str, dict[str, Any]]


def write(folder: Path, files: Files) -> Path:
    """A folder of JSON files; `tokenizer.json` is the list of added tokens of one."""
    state = json.loads(Tokenizer(models.BPE({piece: id for id, piece in enumerate(PIECES)}, MERGES)).to_str())
    files = {**files, "tokenizer.json": {**state, **files["tokenizer.json"]}}
    folder.mkdir(exist_ok=True, parents=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def added(contents: list[str], all_flags: list[dict[str, bool]]) -> list[dict[str, Any]]:
    """Added tokens as tokenizer.json lists them: with the ids that follow from the vocabulary."""
    new = [content for content in contents if content not in PIECES]
    ids = {
        **{piece: number for number, piece in enumerate(PIECES)},
        **{content: len(PIECES) + place for place, content in enumerate(new)},
    }
    return [
        {"id": ids[content], "content": content, **given} for content, given in zip(contents, all_flags, strict=True)
    ]


def a_token(content: str, given: dict[str, bool]) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, **given}


@st.composite
def folders(draw: st.DrawFn) -> Files:
    contents = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    listed = added(contents, [draw(flags) for _ in contents])
    files: Files = {"tokenizer.json": {"added_tokens": listed}}
    eos = draw(st.sampled_from([*contents, "</s>"]))
    named, named_eos = st.sampled_from(NAMES), st.sampled_from([eos, eos, eos, *NAMES[:2]])
    as_written, eos_as_written = (st.one_of(names, st.builds(a_token, names, flags)) for names in (named, named_eos))
    names = {"eos_token": eos_as_written, "pad_token": as_written, "image_token": named}
    config = draw(st.fixed_dictionaries({}, optional=names))
    if draw(st.booleans()):
        config["added_tokens_decoder"] = {
            str(token["id"]): {"content": token["content"], **draw(flags)} for token in listed if draw(st.booleans())
        }
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if draw(st.integers(0, 3)) == 0:
            config[key] = draw(st.lists(named, max_size=2, unique=True))
    files["tokenizer_config.json"] = config | draw(
        st.sampled_from([{}, {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "TokenizersBackend"}])
    )
    if draw(st.booleans()):
        without_type = st.builds(lambda content, given: {"content": content, **given}, named, flags)
        names = {"eos_token": named_eos, "pad_token": st.one_of(named, without_type)}
        files["special_tokens_map.json"] = draw(st.fixed_dictionaries({}, optional=names))
    if draw(st.booleans()):
        files["added_tokens.json"] = {token["content"]: token["id"] for token in listed if draw(st.booleans())}
    ids = st.sampled_from([*range(len(PIECES)), *(token["id"] for token in listed), 99])
    stated = draw(st.one_of(st.none(), ids, st.lists(ids, min_size=1, max_size=2)))
    is_named = any("eos_token" in files.get(file, {}) for file in ("tokenizer_config.json", "special_tokens_map.json"))
    files["config.json"] = {"model_type": "llama", "eos_token_id": stated}
    files["generation_config.json"] = {} if is_named else {"eos_token_id": draw(ids)}
    return files


@pytest.fixture
def quiet() -> Iterator[None]:
    from transformers.utils import logging as library

    level = library.get_verbosity()
    library.set_verbosity(logging.CRITICAL)
    yield
    library.set_verbosity(level)


@pytest.mark.parametrize("compared", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_ids_are_those_of_transformers_whatever_the_files_say(tmp_path: Path, quiet: None, compared: int) -> None:
    from transformers import AutoTokenizer

    outcomes: Counter[str] = Counter()

    @given(files=folders(), text=st.lists(texts, min_size=1, max_size=4))
    @settings(
        deadline=None,
        max_examples=compared * 6 // 5,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def compare(files: Files, text: list[str]) -> None:
        folder = write(tmp_path / "folder", files)
        try:
            facts = tokenizer_facts(folder)
        except DataError:
            outcomes["refused"] += 1
            return
        auto = AutoTokenizer.from_pretrained(folder)
        assert auto.eos_token_id in (None, facts.eos_id)
        eos = auto.added_tokens_decoder.get(facts.eos_id)
        if eos is not None and not eos.special:
            # EOS that config.json alone names, or a list of added tokens leaves out, is special to us in any case.
            auto.add_tokens([AddedToken(eos.content, **{flag: getattr(eos, flag) for flag in FLAGS}, special=True)])
            outcomes["EOS made special"] += 1
        for one, ids in zip(text, FolderEncoder(folder).encode(text), strict=True):
            wanted = auto(one, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert ids.tolist() == wanted, (one, files)
        outcomes["same"] += 1

    compare()
    assert outcomes["same"] >= compared, outcomes
