"""What a model folder holds is what is loaded, or a message names what is not."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from megaslm.errors import ModelError
from megaslm.model.fit import check_model_fits
from megaslm.model.folder import HEAD, check_model_folder
from megaslm.model.load import load_pretrained
from tests.messages import Says
from tests.model_folders import REMOVED, edit_config, edit_weights, make_model, store_head
from tests.toy import make_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> Any:
    return load_pretrained(folder, dtype=torch.float32)


def test_what_is_no_model_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        check_model_folder(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        check_model_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        check_model_folder(folder)


def test_the_folder_of_a_run_gets_the_command_that_writes_its_model(tmp_path: Path, says: Says) -> None:
    checkpoint = tmp_path / "run/checkpoints/step-00000008"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    (checkpoint / "COMPLETE").touch()
    for folder in (tmp_path / "run", checkpoint):
        with pytest.raises(ModelError) as refused:
            check_model_folder(folder)
        says(refused, f"megaslm export {folder}")


def test_a_name_on_the_hub_gets_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the network is touched")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(ModelError) as refused:
        check_model_folder(Path("TinyLlama/TinyLlama_v1.1"))
    says(refused, "TinyLlama/TinyLlama_v1.1", "hf download")


@pytest.mark.parametrize(
    "content",
    [
        b'{"model_type": "ll',
        b'["llama"]',
        b'{"model_type": "llama", "note": "\xe9"}',
        b'{"model_type": "llama", "vocab_size": ' + b"7" * 5000 + b"}",
        b'{"model_type": ' + b"[" * 100_000,
        b'{"model_type": ["llama"]}',
        b"{}",
        b'\xef\xbb\xbf{"model_type": "llama"}',
        '{"model_type": "llama"}'.encode("utf-16"),
    ],
    ids=["cut", "list", "latin-1", "huge number", "deep", "list as type", "nothing", "byte order mark", "utf-16"],
)
def test_a_config_that_cannot_be_parsed_is_named(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model/config\.json"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "unheard-of"},
        {"num_attention_heads": "four"},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"rms_norm_eps": None},
        {"rope_parameters": {"rope_type": "unheard-of", "rope_theta": 1.0}},
        {"rope_parameters": "default"},
        {"num_hidden_layers": 1.5},
    ],
    ids=str,
)
def test_values_that_the_library_refuses_are_named_by_folder(changes: dict[str, Any], folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match="/model"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {"quantization_config": {"quant_method": "torchao"}},
        {"quantization_config": "mxfp4"},
        {"compression_config": {"format": "pack-quantized"}},
    ],
    ids=str,
)
def test_a_quantised_folder_is_refused_for_what_it_is(changes: dict[str, Any], folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=next(iter(changes))):
        check_model_folder(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_weight_of_eight_bits_is_refused(dtype: torch.dtype, folder: Path, says: Says) -> None:
    edit_weights(folder, model__layers__0__mlp__up_proj__weight=torch.ones(48, 32).to(dtype))
    with pytest.raises(ModelError) as refused:
        check_model_folder(folder)
    says(refused, "layers.0.mlp.up_proj.weight", "I8" if dtype == torch.int8 else "F8_E4M3")


def test_files_that_would_be_read_beside_or_instead_are_refused(folder: Path) -> None:
    edit_config(folder, transformers_weights="other.safetensors")
    with pytest.raises(ModelError, match="transformers_weights"):
        check_model_folder(folder)
    edit_config(folder, transformers_weights=REMOVED)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        check_model_folder(folder)


def test_a_family_that_the_library_takes_for_another_is_refused(tmp_path: Path) -> None:
    """transformers 5 makes ministral of mistral with kinds of layers."""
    make_model(tmp_path, "mistral", sliding_window=4)
    edit_config(tmp_path, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(ModelError, match="ministral"):
        check_model_folder(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "unheard-of"])
def test_code_in_a_folder_is_not_run(folder: Path, model_type: str) -> None:
    """Of a known architecture it is passed over; a folder that needs its code is refused, and nobody is asked."""
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(folder, model_type=model_type, auto_map=own)
    (folder / "own.py").write_text(f"open({str(folder / 'was-run')!r}, 'w')")
    if model_type == "llama":
        assert type(load(folder)).__module__.startswith("transformers.models.llama")
    else:
        with pytest.raises(ModelError, match="unheard-of"):
            load(folder)
    assert "own" not in sys.modules
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "v_head.weight",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.7.mlp.up_proj.weight",
        "model.norm.weight_scale",
    ],
)
def test_a_weight_that_nothing_uses_is_named(name: str, folder: Path) -> None:
    edit_weights(folder, **{name: torch.ones(3)})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.mlp.up_proj.weight", "embed_tokens.weight"])
def test_a_weight_under_both_of_its_names_is_one_too_many(name: str, folder: Path) -> None:
    edit_weights(folder, **{name: load_file(folder / "model.safetensors")[f"model.{name}"] + 1})
    with pytest.raises(ModelError, match=rf"as {name}, ".replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("stored", ["both", "equal", "embedding"])
def test_names_without_the_models_are_the_same_weights(stored: str, folder: Path) -> None:
    """As the model without its head has them; a head that is stored beside stays one of its own."""
    store_head(folder, stored)
    path = folder / "model.safetensors"
    weights = {name.removeprefix("model."): weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    edit_config(folder, tie_word_embeddings=True)
    assert check_model_folder(folder).tie_word_embeddings is (stored != "both")
    lm = load(folder)
    assert torch.equal(lm.model.embed_tokens.weight, weights["embed_tokens.weight"])
    assert torch.equal(lm.lm_head.weight, weights.get(HEAD, weights["embed_tokens.weight"]))


@pytest.mark.parametrize(
    ("name", "shape"), [("model.norm.weight", ()), ("model.norm.weight", (1, 32)), ("lm_head.weight", (0, 32))]
)
def test_a_weight_of_another_shape_is_named(name: str, shape: tuple[int, ...], folder: Path) -> None:
    edit_weights(folder, **{name: torch.ones(shape)})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("name", ["inv_freq", "cos_cached"])
def test_angles_of_old_releases_are_passed_over(name: str, folder: Path) -> None:
    edit_weights(folder, **{f"model.layers.0.self_attn.rotary_emb.{name}": torch.ones(4)})
    assert isinstance(load(folder), nn.Module)


@pytest.mark.parametrize(
    ("said", "stored", "tied"),
    [
        (True, "both", False),
        (True, "equal", True),
        (True, "embedding", True),
        (False, "both", False),
        (False, "equal", False),
    ],
)
def test_the_stored_matrices_say_whether_the_head_is_tied(said: bool, stored: str, tied: bool, folder: Path) -> None:
    store_head(folder, stored)
    edit_config(folder, tie_word_embeddings=said)
    lm = load(folder)
    assert (lm.lm_head.weight is lm.model.embed_tokens.weight) is tied
    assert lm.config.tie_word_embeddings is tied


def test_a_head_that_is_stored_nowhere_is_missed(folder: Path) -> None:
    store_head(folder, "embedding")
    with pytest.raises(ModelError, match=HEAD):
        load(folder)


def test_rows_whose_angles_would_depend_on_their_neighbours_are_refused(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "data", {("train", "web"): [2]}, seq_len=16)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for original, fits in ((16, True), (15, False)):
        make_model(tmp_path / f"{original}", rope_parameters={**rope, "original_max_position_embeddings": original})
        config = check_model_folder(tmp_path / f"{original}")
        if fits:
            check_model_fits(config, manifest, model="model", dataset="data")
        else:
            with pytest.raises(ModelError, match="longrope"):
                check_model_fits(config, manifest, model="model", dataset="data")


def test_both_spellings_are_read_alike(tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 3.0}
    make_model(tmp_path, rope_parameters={**scaled, "rope_theta": 777.0})
    now = check_model_folder(tmp_path).rope_parameters
    edit_config(tmp_path, rope_parameters=REMOVED, rope_theta=777.0, rope_scaling=scaled)
    assert check_model_folder(tmp_path).rope_parameters == now
    assert "rope_parameters" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("cap", [3.0, 100.0])
def test_a_model_that_caps_its_logits_is_refused(cap: float, tmp_path: Path, says: Says) -> None:
    make_model(tmp_path, "gemma3_text")
    check_model_folder(tmp_path)
    edit_config(tmp_path, final_logit_softcapping=cap)
    with pytest.raises(ModelError) as refused:
        check_model_folder(tmp_path)
    says(refused, "config.json", f"final_logit_softcapping = {cap}")


def test_a_cap_that_the_family_does_not_read_is_ignored(folder: Path) -> None:
    edit_config(folder, final_logit_softcapping=3.0)
    check_model_folder(folder)
