"""Decoder layers, compiled or not and with each kind of recomputation, against layers as transformers has them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import Tensor
from torch._dynamo.utils import counters
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from megaslm.config.schema import Compile, Recompute
from megaslm.errors import ConfigError
from megaslm.model import decoder_layers, documents
from megaslm.model.decoder_layers import compile_line, is_compiled, kept_products, prepare_layers
from megaslm.model.documents import Documents
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Every, HeadOutput
from tests.messages import Says
from tests.toy import EOS_ID, SEQ_LEN, VOCAB_SIZE

ROWS = 4
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": EOS_ID,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "olmo2": {},
    "olmo3": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": None},
    "phi": {},
    "phi3": {"sliding_window": 5, "pad_token_id": None},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {},
}
RECOMPUTE: list[Recompute] = ["none", "selective", "full"]
ATTENTION = ("_scaled_dot_product_flash_attention_for_cpu", "document_attention")
CPU = torch.device("cpu")


def model_of(family: str = "llama", *, recompute: Recompute | None = None, compiled: bool = False) -> SelectiveLM:
    """In training mode; without `recompute` its layers are left alone."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE, **FAMILIES[family])).train()
    if recompute is not None:
        prepare_layers(lm, recompute=recompute, compiled=compiled)
    return SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)


def rows(seed: int, share_of_eos: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB_SIZE, (ROWS, SEQ_LEN + 1), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < share_of_eos] = EOS_ID
    return tokens


def loss_of(model: SelectiveLM, tokens: Tensor) -> Tensor:
    output = model(tokens, Every(torch.ones(ROWS * SEQ_LEN, dtype=torch.bool)))
    assert isinstance(output, HeadOutput)
    return output.total


def gradients(model: SelectiveLM) -> dict[str, Tensor]:
    loss_of(model, rows(1)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_names_are_those_of_plain_layers(family: str, recompute: Recompute) -> None:
    expected, found = gradients(model_of(family)), gradients(model_of(family, recompute=recompute))
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(model_of(family, recompute=recompute).state_dict()) == list(model_of(family).state_dict())


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layer_of_zero_3_may_add_its_bias_in_place(
    family: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(model_of(family))
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    found = gradients(model_of(family, recompute=recompute))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_a_backward_pass_recomputes_what_it_says() -> None:
    counts = {}
    for recompute in RECOMPUTE:
        loss = loss_of(model_of(recompute=recompute), rows(1))
        with Operators() as operators:
            loss.backward()
        counts[recompute] = operators.counts
    layers = SHAPE["num_hidden_layers"]
    products = {recompute: counts[recompute]["mm"] - counts["none"]["mm"] for recompute in RECOMPUTE}
    # Of seven products, the result of the last one is never needed.
    assert products == {"none": 0, "selective": 3 * layers, "full": 6 * layers}
    attention = {recompute: sum(counts[recompute][name] for name in ATTENTION) for recompute in RECOMPUTE}
    assert attention == {"none": 0, "selective": 0, "full": layers}


def test_products_with_a_bias_are_not_kept() -> None:
    kept = {family: kept_products(model_of(family).lm.model.layers[0]) for family in ("llama", "qwen2")}
    assert kept["llama"] == (False, True, False, True, False, True, False)
    assert kept["qwen2"] == (False, False, False, True, False, True, False)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_one_graph_serves_all_layers_and_any_number_of_documents(recompute: Recompute) -> None:
    compiled, plain = model_of(recompute=recompute, compiled=True), model_of()
    for number in range(50):
        micro_batch = rows(number, share_of_eos=number / 50)
        for model in (compiled, plain):
            loss_of(model, micro_batch).backward()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_keep_names_and_gradients(family: str) -> None:
    expected, compiled = gradients(model_of(family)), model_of(family, recompute="selective", compiled=True)
    found = gradients(compiled)
    assert counters["stats"]["unique_graphs"] >= 1
    assert list(compiled.state_dict()) == list(model_of(family).state_dict())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_gradients_under_a_mask_are_the_same(
    recompute: Recompute, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU without a kernel for documents. One of the two layers has a window."""
    expected = gradients(model_of("qwen2"))
    monkeypatch.setattr(Documents, "takes", lambda *_: False)
    monkeypatch.setattr(documents, "document_attention", None)  # Nothing calls it.
    found = gradients(model_of("qwen2", recompute=recompute, compiled=compiled))
    assert (counters["stats"]["unique_graphs"] > 0) == compiled
    assert not counters["graph_break"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("traced")
def test_a_model_in_the_other_mode_is_not_compiled() -> None:
    model = model_of(recompute="full", compiled=True).eval()
    assert torch.equal(model.measure(rows(1)).losses, model_of().eval().measure(rows(1)).losses)
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_inductor_computes_the_same(recompute: Recompute) -> None:
    expected, found = gradients(model_of()), gradients(model_of(recompute=recompute, compiled=True))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.parametrize(("setting", "expected"), [("auto", False), ("off", False), ("on", True)])
def test_a_cpu_compiles_only_when_told(setting: Compile, expected: bool) -> None:
    assert is_compiled(setting, CPU, name="model.compile =") is expected


@pytest.mark.parametrize("lacking", [None, "Triton is not installed"])
def test_a_gpu_compiles_where_nothing_is_lacking(
    lacking: str | None, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setattr(decoder_layers, "lacking_for_gpu", lambda: lacking)
    gpu = torch.device("cuda")
    assert is_compiled("auto", gpu, name="model.compile") == (lacking is None)
    says(compile_line("auto", gpu, name="model.compile") or "")


@pytest.mark.usefixtures("no_compiler")
def test_compiling_without_a_compiler_is_refused(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        is_compiled("on", CPU, name="model.compile =")
    says(refused, "model.compile = on", "g++")
    assert not is_compiled("auto", CPU, name="model.compile =")


def test_a_user_is_told_why_layers_are_not_compiled_or_that_it_takes_long(says: Says) -> None:
    settings: dict[Compile, str] = {"auto": "GPU", "on": "compiled"}
    for setting, named in settings.items():
        says(str(compile_line(setting, CPU, name="model.compile =")), named)
    assert compile_line("off", CPU, name="model.compile =") is None
