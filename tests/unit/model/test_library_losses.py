"""Losses of a folder's model are those that plain transformers gives, whatever its config.json says."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaslm.errors import ModelError
from megaslm.model.attention.operator import document_attention
from megaslm.model.load import load_pretrained
from megaslm.model.selective_lm import SelectiveLM
from megaslm.model.self_check import require_library_losses
from tests.messages import Says
from tests.model_folders import REMOVED, edit_config, make_model, plain_losses, rows, store_head
from tests.toy import EOS_ID

WINDOWS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {"none": {}, "a number that no layer reads": {"sliding_window": 4}},
    "granite": {"none": {}, "a number that no layer reads": {"sliding_window": 4}},
    "mistral": {
        "none": {},
        "all layers": {"sliding_window": 5},
        "longer than rows": {"sliding_window": 4096},
    },
    "qwen2": {
        "none": {},
        "switched off": {"use_sliding_window": False, "sliding_window": 4},
        "no layer by their number": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        "one layer": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "all layers": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        "no layer by their kinds": {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 0,
            "layer_types": ["full_attention"] * 2,
        },
        "the first layer": {
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    },
    "qwen3": {
        "none": {},
        "one layer, wide heads": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    },
    "olmo2": {"none": {}},
    "smollm3": {"none": {}, "a layer without positions": {"no_rope_layers": [1, 0]}},
    "phi": {"none": {}, "heads that are rotated in part": {"partial_rotary_factor": 0.5}},
    "phi3": {"none": {}, "all layers": {"sliding_window": 5}},
}
PER_LAYER: dict[str, dict[str, dict[str, Any]]] = {
    "olmo3": {"windows": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}},
    "gemma3_text": {
        "windows": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        "another scale of queries": {"query_pre_attn_scalar": 24, "layer_types": ["sliding_attention"] * 2},
    },
}
"""Families whose kinds of layers have rotary embeddings of their own."""
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "another base": {"rope_theta": 500.0},
    "linear": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "linear, as older releases say it": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "yarn": {
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "release 5": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 700.0, **LLAMA3}},
}
EXTRAS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {"none": {}, "another family's keys": {"logits_scaling": 8.0, "logit_scale": 0.1}},
    "mistral": {"none": {}, "another family's keys": {"final_logit_softcapping": 2.0, "logits_scaling": 8.0}},
    "qwen2": {"none": {}, "another family's keys": {"logit_scale": 0.25, "embedding_multiplier": 3.0}},
    "granite": {"none": {}, "multipliers": {"logits_scaling": 4.0, "residual_multiplier": 0.5}},
    "qwen3": {"none": {}, "another family's keys": {"logit_scale": 0.25, "final_logit_softcapping": 3.0}},
    "olmo2": {"none": {}, "another family's keys": {"logits_scaling": 8.0, "sliding_window": 4}},
    "smollm3": {"none": {}, "another family's keys": {"logits_scaling": 8.0}},
    "phi": {"none": {}, "another family's keys": {"logits_scaling": 8.0}},
    "phi3": {"none": {}, "another family's keys": {"logits_scaling": 8.0}},
}
FAMILIES = tuple(WINDOWS)
HALVED = 0.5
TIES = (("untied", "both"), ("untied", "equal"), ("tied", "both"), ("tied", "equal"), ("tied", "embedding"))


@st.composite
def folders(draw: st.DrawFn) -> tuple[str, dict[str, Any], str]:
    """A family, what config.json says, and which of the two matrices are stored."""
    family = draw(st.sampled_from(FAMILIES))
    # transformers lets Phi 3 scale its positions by longrope only.
    ropes = {name: ROPES[name] for name in (("default", "another base") if family == "phi3" else ROPES)}
    parts = (WINDOWS[family], ropes, EXTRAS[family])
    said = {key: value for part in parts for key, value in part[draw(st.sampled_from(sorted(part)))].items()}
    tie, stored = draw(st.sampled_from(TIES))
    # The model is saved by release 5; what the other spelling says has to come in its place.
    spelling = {} if "rope_parameters" in said or not {"rope_theta", "rope_scaling"} & set(said) else REMOVED
    rope = {"rope_parameters": spelling} if spelling is REMOVED else {}
    return family, {**rope, **said, "tie_word_embeddings": tie == "tied"}, stored


def largest_difference(folder: Path, *, isolated: bool) -> float:
    tokens = rows()
    lm = load_pretrained(folder, dtype=torch.float32).eval()
    ours = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=isolated).measure(tokens).losses
    ours = ours.masked_fill(tokens[:, :-1] == EOS_ID, 0.0)
    return float((ours - plain_losses(folder, tokens, isolated=isolated)).abs().max())


def require_equal(drawn: tuple[str, dict[str, Any], str]) -> None:
    family, said, stored = drawn
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make_model(folder, family, tie_word_embeddings=False)
        store_head(folder, stored)
        edit_config(folder, layer_types=REMOVED)
        edit_config(folder, **said)
        for isolated in (True, False):
            assert largest_difference(folder, isolated=isolated) <= 1e-5


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(folders())
def test_losses_are_those_of_plain_transformers(drawn: tuple[str, dict[str, Any], str]) -> None:
    require_equal(drawn)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(folders())
def test_losses_are_those_of_plain_transformers_in_many_folders(drawn: tuple[str, dict[str, Any], str]) -> None:
    require_equal(drawn)


@pytest.mark.parametrize(("family", "window"), [(family, name) for family in FAMILIES for name in WINDOWS[family]])
def test_every_window_is_the_librarys(family: str, window: str, tmp_path: Path) -> None:
    make_model(tmp_path, family)
    edit_config(tmp_path, layer_types=REMOVED)
    edit_config(tmp_path, **WINDOWS[family][window])
    assert largest_difference(tmp_path, isolated=True) <= 1e-5


@pytest.mark.parametrize(("family", "said"), [(family, name) for family in PER_LAYER for name in PER_LAYER[family]])
def test_rotary_embeddings_per_kind_of_layer_are_the_librarys(family: str, said: str, tmp_path: Path) -> None:
    config = make_model(tmp_path, family, **PER_LAYER[family][said]).config
    require_library_losses(config, model="model")
    for isolated in (True, False):
        assert largest_difference(tmp_path, isolated=isolated) <= 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, *PER_LAYER])
def test_the_check_at_load_sees_what_a_layer_does(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A window that is none of the model's, and a head that is scaled as another family's, are each found out."""
    config = make_model(tmp_path, family).config
    require_library_losses(config, model="model")
    with monkeypatch.context() as patched:
        patched.setattr("megaslm.model.documents.document_attention", _windowed)
        with pytest.raises(ModelError, match=r"config\.json"):
            require_library_losses(config, model="model")
    with monkeypatch.context() as patched:
        patched.setattr("megaslm.model.selective_lm.logit_scale", lambda config: HALVED)
        with pytest.raises(ModelError, match=r"config\.json"):
            require_library_losses(config, model="model")


def _windowed(*tensors_and_length: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *arguments, _, scale = tensors_and_length
    return document_attention(*arguments, 4, scale)


def test_the_check_refuses_a_configuration_that_cannot_compute(tmp_path: Path) -> None:
    config = make_model(tmp_path).config
    config.hidden_act = "unheard-of"
    with pytest.raises(ModelError, match="unheard-of"):
        require_library_losses(config, model="model")


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_lets_no_token_see_itself_is_refused(window: int, tmp_path: Path, says: Says) -> None:
    """What a token without any context computes differs from one of transformers' attention functions to the other."""
    config = make_model(tmp_path, "mistral", sliding_window=window).config
    with pytest.raises(ModelError) as refused:
        require_library_losses(config, model="model")
    says(refused, "config.json", f"sliding_window = {window}")
