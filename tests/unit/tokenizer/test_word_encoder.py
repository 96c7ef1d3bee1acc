"""Encoding by stretches gives the ids that the library gives for whole texts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from megaslm.tokenizer import word_encoder
from megaslm.tokenizer.sentencepiece_export import export_sentencepiece
from megaslm.tokenizer.tokenizer import FolderEncoder
from megaslm.tokenizer.word_encoder import WordEncoder, fastest_encoder
from tests.unit.conftest import AWKWARD, shared_texts, standard_library_texts

Train = Callable[..., bytes]
PREFIXED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
MARKED = normalizers.Sequence([normalizers.Replace(" ", "▁")])


def require_same(folder: Path, texts: list[str]) -> None:
    fast, whole = fastest_encoder(folder), FolderEncoder(folder)
    assert isinstance(fast, WordEncoder)
    for text, found, wanted in zip(texts, fast.encode(texts), whole.encode(texts), strict=True):
        assert found.dtype == wanted.dtype == np.uint32
        assert found.tolist() == wanted.tolist(), repr(text[:80])
        assert fast.decode(found) == whole.decode(wanted)


@pytest.fixture(scope="module", params=[{}, {"add_dummy_prefix": True}, {"byte_fallback": False}], ids=str)
def folder(request: pytest.FixtureRequest, train_model: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    export_sentencepiece(train_model(**request.param), folder)
    return folder


def test_ids_are_the_same_on_the_standard_library(folder: Path) -> None:
    require_same(folder, standard_library_texts())


def test_ids_are_the_same_on_awkward_texts(folder: Path) -> None:
    require_same(folder, [*AWKWARD, "▁", " ▁ a", "漢字かな交じり文 ☃☃☃☃ \U0001f600\U0001f600x", "x" * 1000])


def test_ids_are_the_same_on_other_real_text(folder: Path) -> None:
    require_same(folder, shared_texts())


def test_ids_are_the_same_where_blocks_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_encoder, "_BLOCK_CHARACTERS", 7)
    monkeypatch.setattr(word_encoder, "_REMEMBERED_STRETCHES", 10)
    require_same(folder, [*AWKWARD, standard_library_texts()[0][:5000]])


def test_ids_are_the_same_where_most_characters_are_rare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A vocabulary of many scripts has more characters than classes.
    monkeypatch.setattr(word_encoder, "_MOST_CLASSES", 8)
    require_same(folder, [*AWKWARD, standard_library_texts()[0][:5000]])


# Few characters and any merges at all, so that what can go wrong at a cut does.
CHARACTERS = "ab▁<é"
texts = st.text(alphabet="ab <é☃", max_size=30)


@st.composite
def merges(draw: st.DrawFn) -> list[tuple[str, str]]:
    pieces, found = list(CHARACTERS), []
    for _ in range(draw(st.integers(0, 12))):
        merge = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        if merge not in found:
            found.append(merge)
            pieces.append("".join(merge))
    return found


@given(merges=merges(), texts=st.lists(texts, max_size=5), variant=st.integers(0, 4), byte_fallback=st.booleans())
@settings(deadline=None, max_examples=300)
def test_ids_are_the_same_for_any_merges(
    tmp_path_factory: pytest.TempPathFactory,
    merges: list[tuple[str, str]],
    texts: list[str],
    variant: int,
    byte_fallback: bool,
) -> None:
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS, *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(["<unk>", *pieces]))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if variant < 2:
        tokenizer.normalizer = (MARKED, PREFIXED)[variant]
    else:
        scheme = ("never", "first", "always")[variant - 2]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens(["<unk>"])
    folder = tmp_path_factory.mktemp("merges")
    tokenizer.save(str(folder / "tokenizer.json"))
    require_same(folder, texts)


def _byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()


def _added(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("ab", special=False)])


def _lowercased(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize("change", [_byte_level, _added, _lowercased])
def test_a_tokenizer_that_does_more_is_left_to_the_library(tmp_path: Path, change: Callable[[Tokenizer], None]) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "▁": 2, "ab": 3}, [("a", "b")]))
    tokenizer.normalizer = MARKED
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(fastest_encoder(tmp_path), WordEncoder)
    change(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(fastest_encoder(tmp_path), FolderEncoder)


@pytest.mark.parametrize(
    "change", [{"ignore_merges": True}, {"end_of_word_suffix": "</w>"}, {"merges": [["<0x0A>", "a"]]}]
)
def test_a_model_that_does_more_is_left_to_the_library(tmp_path: Path, change: dict[str, object]) -> None:
    vocabulary = {
        piece: number for number, piece in enumerate(["a", "▁", "aa", "<0x0A>", "<0x0A>a", "aa</w>", "a</w>"])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "a")]))
    tokenizer.normalizer = MARKED
    state = json.loads(tokenizer.to_str())
    state["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    assert isinstance(fastest_encoder(tmp_path), FolderEncoder)
