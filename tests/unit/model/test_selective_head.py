"""The head that takes over a model's own: the same parameters, the same losses, whatever is done to logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from megaslm.errors import ModelError
from megaslm.model import selective_lm
from megaslm.model.selective_lm import HeadSettings, SelectiveLM
from megaslm.slm.choice import Every, Known, Selected
from megaslm.slm.measure import Measure
from megaslm.slm.token_loss import HeadMethod
from tests.chosen import selected
from tests.messages import Says
from tests.toy import EOS_ID

# A vocabulary that is no multiple of anything, of which texts use a part: the rest is padding.
VOCAB_SIZE, USED = 67, 50
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "granite, divided logits": GraniteConfig(**SHAPE, logits_scaling=8.0, embedding_multiplier=3.0),
}


def drawn(config: PretrainedConfig) -> nn.Module:
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(0)
    for parameter in lm.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return lm.eval()


def rows() -> Tensor:
    return torch.randint(3, USED, (2, 13), generator=torch.Generator().manual_seed(1))


class Hardest:
    """The targets of a loss above 4 nats."""

    forecast = None
    by_entropy = False
    weights = None

    def __call__(self, losses: Tensor) -> Selected:
        return selected(losses > 4.0)

    def unsortable(self, losses: Tensor) -> Tensor:
        return torch.zeros_like(losses, dtype=torch.bool)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_the_models_own_logits(name: str) -> None:
    tokens = rows()
    plain, ours = drawn(ARCHITECTURES[name]), drawn(ARCHITECTURES[name])
    logits = plain(tokens[:, :-1]).logits
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    losses[losses.detach() > 4.0].sum().backward()

    model = SelectiveLM(ours, eos_id=EOS_ID, document_isolation=True, head=HeadSettings("bracket"))
    assert (model.measure(tokens).losses.flatten() - losses).abs().max() < 1e-5
    total, *_ = model(tokens, Hardest())
    total.backward()
    theirs = dict(plain.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        expected = theirs[parameter_name].grad
        assert (parameter.grad - expected).norm() <= 1e-5 * expected.norm(), parameter_name


def test_every_choice_of_the_same_rows_gives_the_same_gradient() -> None:
    tokens = rows()
    targets = tokens[:, 1:].numel()
    gradients, totals = [], []
    mask = (
        SelectiveLM(drawn(ARCHITECTURES["llama"]), eos_id=EOS_ID, document_isolation=True).measure(tokens).losses > 4.0
    )
    mask = mask.flatten()
    known = Known(mask, mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)[:3])
    for choice in (Hardest(), Every(mask), known):
        lm = drawn(ARCHITECTURES["llama"])
        total, losses, *_ = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)(tokens, choice)
        total.backward()
        totals.append(total.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in lm.parameters()]))
        if isinstance(choice, Known):
            measured = mask.index_fill(0, known.rest, True)
            assert int(measured.sum()) == int(mask.sum()) + 3
            assert ((losses.flatten() != 0) == measured).all()
    assert losses.numel() == targets
    for total, gradient in zip(totals, gradients, strict=True):
        torch.testing.assert_close(total, totals[0], rtol=1e-5, atol=1e-5)
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


class Unrankable(Hardest):
    """The same, but some rank has a target that cannot be sorted."""

    def __call__(self, losses: Tensor) -> Selected:
        return super().__call__(losses)._replace(stop=torch.ones((), dtype=torch.int64))


@pytest.mark.parametrize("method", ["cache", "bracket", "recompute"])
def test_targets_that_cannot_be_ranked_make_the_sum_and_the_gradient_nan(method: HeadMethod) -> None:
    lm = drawn(ARCHITECTURES["llama"])
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True, head=HeadSettings(method))
    total, losses, *_ = model(rows(), Unrankable())
    assert total.isnan()
    torch.testing.assert_close(losses, model.measure(rows()).losses)
    total.backward()
    # Every parameter takes part in the backward pass; one NaN makes the norm of the whole gradient NaN.
    assert all(parameter.grad is not None for parameter in lm.parameters())
    assert lm.lm_head.weight.grad.isnan().any()


def test_without_targets_the_head_gives_the_logits_of_the_layer_it_replaced() -> None:
    plain, ours = drawn(ARCHITECTURES["llama"]), drawn(ARCHITECTURES["llama"])
    SelectiveLM(ours, eos_id=EOS_ID, document_isolation=True)
    assert torch.equal(plain(rows()).logits, ours(rows()).logits)


def test_a_tied_head_stays_tied() -> None:
    lm = drawn(ARCHITECTURES["llama, tied"])
    SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_a_head_that_is_no_linear_layer_is_refused(says: Says) -> None:
    lm = drawn(ARCHITECTURES["llama"])
    lm.lm_head = nn.Sequential(lm.lm_head)
    with pytest.raises(ModelError) as refused:
        SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
    says(refused, "Sequential")


def test_auto_caches_in_bf16_within_its_budget() -> None:
    settings = HeadSettings("auto", cache_bytes=2 * 8 * 100)
    hidden = torch.zeros(8, 4)
    assert settings.method_for(hidden.bfloat16(), 100) == "cache"
    assert settings.method_for(hidden.bfloat16(), 101) == "bracket"
    assert settings.method_for(hidden, 100) == "bracket"
    assert HeadSettings("recompute").method_for(hidden.bfloat16(), 100) == "recompute"


def test_rows_are_measured_alike_in_groups_and_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(3, USED, (5, 13), generator=torch.Generator().manual_seed(1))
    model = SelectiveLM(drawn(ARCHITECTURES["llama"]), eos_id=EOS_ID, document_isolation=True)
    losses, (losses_too, entropies) = (
        model.measure(tokens).losses,
        model.measure(tokens, what=Measure(entropies=True)).columns,
    )
    groups: list[int] = []
    model.lm.model.register_forward_pre_hook(
        lambda _, __, given: groups.append(len(given["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(selective_lm, "_TOKENS_AT_ONCE_ON_CPU", 2 * 12)
    torch.testing.assert_close(model.measure(tokens).losses, losses, rtol=1e-6, atol=1e-6)
    assert groups == [2, 2, 1]
    in_groups = model.measure(tokens, what=Measure(entropies=True)).columns
    torch.testing.assert_close(in_groups, (losses_too, entropies), rtol=1e-6, atol=1e-6)
    assert groups == [2, 2, 1] * 2
