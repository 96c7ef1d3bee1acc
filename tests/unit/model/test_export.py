"""What an export needs is there at any time, and what is written is what a script opens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from megaslm.config.recipe import Bos
from megaslm.config.schema import Architecture
from megaslm.errors import ModelError
from megaslm.model.export import describe_model, require_same_ids, save_hugging_face
from megaslm.model.load import build_from_shape, load_pretrained
from megaslm.tokenizer.plain_folder import write_plain_folder
from megaslm.tokenizer.sentencepiece_export import ORIGINAL
from megaslm.tokenizer.tokenizer import FolderEncoder
from tests.model_folders import make_model, plain_losses, rows, store_head
from tests.toy import EOS_ID, SHAPE, make_tokenizer

TEXT = "the quick brown fox, 12 and 345;\r\n  two  spaces <s> "
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, scaled positions": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}),
    "mistral, window": (
        "mistral",
        {"sliding_window": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    ),
    "granite, tied": ("granite", {"tie_word_embeddings": True, "logits_scaling": 4.0}),
}


def byte_tokenizer(folder: Path, **config: Any) -> None:
    """A byte-level tokenizer with BOS, EOS, and a post-processor that puts the BOS in front."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **config}))


def trained(lm: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model, as a checkpoint has them."""
    return {f"lm.{name}": parameter.detach() for name, parameter in lm.named_parameters()}


def exported(origin: Path, tokenizer: Path, work: Path, bos: Bos = "none") -> Path:
    """A folder's model, described and exported as a run that starts from it does."""
    lm = load_pretrained(origin, dtype=torch.float32)
    describe_model(lm, torch.float32, tokenizer, work / "described", pretrained=origin, bos=bos)
    save_hugging_face(trained(lm), work / "described", work / "exported")
    return work / "exported"


def test_a_description_is_left_as_it_is_and_replaced_where_it_has_changed(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    lm = build_from_shape(Architecture.model_validate(SHAPE), eos_id=EOS_ID, dtype=torch.float32)
    folder = tmp_path / "run" / "model"
    describe_model(lm, torch.float32, tmp_path / "tokenizer", folder, pretrained=None, bos="none")
    first = folder.stat().st_ino
    describe_model(lm, torch.float32, tmp_path / "tokenizer", folder, pretrained=None, bos="none")
    assert folder.stat().st_ino == first
    describe_model(lm, torch.bfloat16, tmp_path / "tokenizer", folder, pretrained=None, bos="none")
    assert '"bfloat16"' in (folder / "config.json").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", MODELS)
def test_a_script_opens_the_same_model(name: str, tmp_path: Path) -> None:
    family, settings = MODELS[name]
    make_model(tmp_path / "origin", family, vocab_size=300, **settings)
    byte_tokenizer(tmp_path / "tokenizer")
    folder = exported(tmp_path / "origin", tmp_path / "tokenizer", tmp_path)
    assert torch.equal(plain_losses(folder, rows()), plain_losses(tmp_path / "origin", rows()))
    stated = json.loads((folder / "config.json").read_text())
    now = stated["rope_parameters"]
    assert stated["rope_theta"] == now["rope_theta"]
    assert stated["rope_scaling"] == ({"rope_type": "llama3", **LLAMA3} if now["rope_type"] == "llama3" else None)
    opened = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    expected = FolderEncoder(tmp_path / "tokenizer").encode([TEXT])[0].tolist()
    assert opened(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
    assert opened.model_input_names == ["input_ids", "attention_mask"]


def test_what_texts_are_compared_with_goes_along(tmp_path: Path) -> None:
    """A SentencePiece model by which a dataset is made of the exported tokenizer, and a template of chats."""
    make_model(tmp_path / "origin", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer")
    for name in (ORIGINAL, "chat_template.jinja"):
        (tmp_path / "tokenizer" / name).write_bytes(name.encode())
    folder = exported(tmp_path / "origin", tmp_path / "tokenizer", tmp_path)
    assert [(folder / name).read_text() for name in (ORIGINAL, "chat_template.jinja")] == [
        ORIGINAL,
        "chat_template.jinja",
    ]


@pytest.mark.parametrize("stored", ["both", "equal"])
def test_the_export_says_whether_the_head_is_tied(stored: str, tmp_path: Path) -> None:
    """Whatever the start's config.json says, and where a description of a former release does."""
    make_model(tmp_path / "origin", vocab_size=300)
    store_head(tmp_path / "origin", stored)
    byte_tokenizer(tmp_path / "tokenizer")
    for said in (True, False):
        config = json.loads((tmp_path / "origin/config.json").read_text())
        (tmp_path / "origin/config.json").write_text(json.dumps({**config, "tie_word_embeddings": said}))
        folder = exported(tmp_path / "origin", tmp_path / "tokenizer", tmp_path)
        tied = said and stored == "equal"
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
        shutil.rmtree(folder)


def test_how_to_generate_is_the_starts(tmp_path: Path) -> None:
    make_model(tmp_path / "origin", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer")
    # A tokenizer that was taken from another model's folder.
    (tmp_path / "tokenizer/generation_config.json").write_text('{"eos_token_id": 299}')
    stated = '{"do_sample": true, "temperature": 0.7, "eos_token_id": [2, 7]}'
    (tmp_path / "origin/generation_config.json").write_text(stated)
    folder = exported(tmp_path / "origin", tmp_path / "tokenizer", tmp_path)
    assert (folder / "generation_config.json").read_text() == stated
    lm = AutoModelForCausalLM.from_pretrained(folder)
    prompt = AutoTokenizer.from_pretrained(folder)("the quick", return_tensors="pt")
    assert lm.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("bos", ["none", "document", "row"])
@pytest.mark.parametrize("known", [None, 0])
def test_bos_is_put_before_a_text_exactly_if_rows_had_it(bos: Bos, known: int | None, tmp_path: Path) -> None:
    """Whatever the start's config.json says. It is named if the model knows it, by its start or by its rows."""
    byte_tokenizer(tmp_path / "tokenizer")
    make_model(tmp_path / "origin", vocab_size=300, bos_token_id=known)
    folder = exported(tmp_path / "origin", tmp_path / "tokenizer", tmp_path, bos)
    opened = AutoTokenizer.from_pretrained(folder)
    plain = FolderEncoder(tmp_path / "tokenizer").encode(["the quick"])[0].tolist()
    assert opened("the quick")["input_ids"] == ([] if bos == "none" else [0]) + plain
    assert opened("the quick", add_special_tokens=False)["input_ids"] == plain
    names_bos = known is not None or bos != "none"
    assert opened.bos_token == ("<s>" if names_bos else None)
    assert AutoModelForCausalLM.from_pretrained(folder).config.bos_token_id == (0 if names_bos else None)
    assert opened.eos_token == "</s>"


@pytest.mark.parametrize("known", [None, 0])
def test_a_run_of_an_earlier_build_is_exported_as_it_was(known: int | None, tmp_path: Path) -> None:
    """Its description does not say what rows had."""
    byte_tokenizer(tmp_path / "tokenizer")
    make_model(tmp_path / "origin", vocab_size=300, bos_token_id=known)
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    describe_model(lm, torch.float32, tmp_path / "tokenizer", tmp_path / "run", pretrained=None, bos="none")
    (tmp_path / "run/rows.json").unlink()
    save_hugging_face(trained(lm), tmp_path / "run", tmp_path / "exported")
    opened = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert opened.bos_token == (None if known is None else "<s>")
    assert (opened("a")["input_ids"][0] == 0) is (known == 0)


def test_a_resumed_run_of_an_earlier_build_gets_to_know_its_rows(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "tokenizer")
    make_model(tmp_path / "origin", vocab_size=300, bos_token_id=0)
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    for _ in range(2):
        describe_model(lm, torch.float32, tmp_path / "tokenizer", tmp_path / "run", pretrained=None, bos="none")
        assert json.loads((tmp_path / "run/rows.json").read_text()) == {"bos": "none"}
        (tmp_path / "run/rows.json").unlink()


def test_an_export_whose_tokenizer_puts_another_front_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    byte_tokenizer(tmp_path / "tokenizer")
    make_model(tmp_path / "origin", vocab_size=300)
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    monkeypatch.setattr("megaslm.model.export.write_plain_folder", without_bos)
    with pytest.raises(ModelError, match=r"\(bos: document\)"):
        describe_model(lm, torch.float32, tmp_path / "tokenizer", tmp_path / "run", pretrained=None, bos="document")
    assert not (tmp_path / "run").exists()


def without_bos(tokenizer: Path, folder: Path, *, names_bos: bool, puts_bos: bool | None) -> None:
    write_plain_folder(tokenizer, folder, names_bos=names_bos, puts_bos=False)


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True, "legacy": False},
        {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True, "add_bos_token": True},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}},
    ],
    ids=lambda config: config["tokenizer_class"],
)
def test_other_tokenizers_classes_do_not_build_it_anew(config: dict[str, Any], tmp_path: Path) -> None:
    make_model(tmp_path / "origin", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer", **config)
    folder = exported(tmp_path / "origin", tmp_path / "tokenizer", tmp_path)
    expected = FolderEncoder(tmp_path / "tokenizer").encode([TEXT])[0].tolist()
    found = AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False, split_special_tokens=True)
    assert found["input_ids"] == expected


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("said", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}], ids=str)
def test_the_space_in_front_is_said_as_it_is(said: dict[str, bool], stored: bool, tmp_path: Path) -> None:
    """transformers 4 goes by tokenizer_config.json, where it says nothing by false."""
    byte_tokenizer(tmp_path / "tokenizer", **said)
    path = tmp_path / "tokenizer/tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=stored)
    made.save(str(path))
    (tmp_path / "folder").mkdir()
    write_plain_folder(tmp_path / "tokenizer", tmp_path / "folder", names_bos=False, puts_bos=False)
    assert json.loads((tmp_path / "folder/tokenizer_config.json").read_text())["add_prefix_space"] is stored
    require_same_ids(tmp_path / "folder", tmp_path / "tokenizer")


def test_a_tokenizer_that_every_script_would_build_anew_is_refused_before_training(tmp_path: Path) -> None:
    """transformers 5 goes by the model type qwen2, and splits texts as Qwen2's tokenizer does."""
    make_model(tmp_path / "origin", "qwen2", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer")
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    with pytest.raises(ModelError, match="Qwen2Tokenizer"):
        describe_model(lm, torch.float32, tmp_path / "tokenizer", tmp_path / "described", pretrained=None, bos="none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["origin", "tokenizer"]


def test_nothing_is_left_of_an_export_that_opens_as_another_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_model(tmp_path / "origin", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer")
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    describe_model(lm, torch.float32, tmp_path / "tokenizer", tmp_path / "described", pretrained=None, bos="none")
    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr("megaslm.model.export.in_both_spellings", lambda config: {**config, "rms_norm_eps": 0.1})
        with pytest.raises(ModelError, match="rms_norm_eps"):
            save_hugging_face(trained(lm), tmp_path / "described", tmp_path / "exported")
    assert {path.name for path in tmp_path.iterdir()} == before
    weights = trained(lm) | {"lm.another.weight": torch.ones(1)}
    with pytest.raises(ModelError, match=r"another\.weight"):
        save_hugging_face(weights, tmp_path / "described", tmp_path / "exported")
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", ["[1]", "null", '{"max_new_tokens": -3}', '{"watermarking_config": {"a": 1}}', "{"])
def test_a_generation_config_that_no_script_can_open_is_refused_before_training(content: str, tmp_path: Path) -> None:
    """Where nothing is exported, as of a reference, it is not read."""
    make_model(tmp_path / "origin", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "origin/generation_config.json").write_text(content)
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    with pytest.raises(ModelError, match=r"origin/generation_config\.json"):
        describe_model(
            lm,
            torch.float32,
            tmp_path / "tokenizer",
            tmp_path / "described",
            pretrained=tmp_path / "origin",
            bos="none",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["origin", "tokenizer"]


@pytest.mark.parametrize("config", [{"model_max_length": "many"}, {"padding_side": "middle"}], ids=str)
def test_a_tokenizer_that_no_script_can_use_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    make_model(tmp_path / "origin", vocab_size=300)
    byte_tokenizer(tmp_path / "tokenizer", **config)
    lm = load_pretrained(tmp_path / "origin", dtype=torch.float32)
    with pytest.raises(ModelError, match=f"^{tmp_path}/tokenizer: "):
        describe_model(lm, torch.float32, tmp_path / "tokenizer", tmp_path / "described", pretrained=None, bos="none")
