"""A backward pass without unselected tokens: the gradient that is left, and how far it is off."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from megaslm.config.schema import Architecture
from megaslm.errors import ConfigError
from megaslm.model.decoder_layers import decoder_layers, prepare_layers
from megaslm.model.documents import attend
from megaslm.model.filtered_backward import require_no_dropout
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Known
from tests.messages import Says
from tests.toy import EOS_ID, SHAPE, VOCAB_SIZE, Unsharded

LAYERS, ROWS, LENGTH = 4, 3, 24
WINDOWED = {"family": "mistral", "sliding_window": 5}


def model(filtered: int = 0, *, isolated: bool = True, **shape: Any) -> SelectiveLM:
    window = shape.pop("sliding_window", None)
    architecture = Architecture.model_validate({**SHAPE, "num_layers": LAYERS, **shape})
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float64)
    for layer in decoder_layers(lm):
        if window is not None:
            layer.self_attn.sliding_window = window
    draw_weights(lm, seed=0, standard_deviation=0.3, sharding=Unsharded())
    prepare_layers(lm.train(), recompute="full", compiled=False, filtered=filtered)
    made = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=isolated)
    made.backward_filter.leaves_out = filtered > 0
    return made


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(3, VOCAB_SIZE, (ROWS, LENGTH + 1), generator=generator)
    return drawn.where(torch.rand(drawn.shape, generator=generator) > 0.1, EOS_ID)


def choice_of(share: float) -> Known:
    mask = torch.rand(ROWS * LENGTH, generator=torch.Generator().manual_seed(2)) < share
    return Known(mask, mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1))


def gradient(lm: SelectiveLM, choice: Known) -> dict[str, Tensor]:
    """The gradient of each parameter."""
    lm.zero_grad()
    output: Any = lm(tokens(), choice)
    output.total.backward()
    return {name: parameter.grad.clone() for name, parameter in lm.named_parameters() if parameter.grad is not None}


@pytest.fixture
def without_others() -> Iterator[Any]:
    """Makes an exact model stop gradients where a filtered one would not have them, by autograd's own means."""

    def stop(lm: SelectiveLM, mask: Tensor, filtered: int) -> None:
        first = LAYERS - filtered
        of_keys, of_hidden = mask.view(ROWS, 1, LENGTH, 1), mask.view(ROWS, LENGTH, 1)

        def attend_without(layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
            if layer.layer_idx >= first:
                key, value = (part.where(of_keys, part.detach()) for part in (key, value))
            return attend(layer, query, key, value, *args, **options)

        AttentionInterface.register("without_others", attend_without)
        lm.lm.set_attn_implementation("without_others")
        for layer in decoder_layers(lm.lm)[first:]:
            layer.forward = partial(_stopped, layer, of_hidden)

    def _stopped(layer: nn.Module, of_hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = type(layer).forward(layer, *args, **kwargs)
        return output.where(of_hidden, output.detach())

    yield stop
    AttentionInterface._global_mapping.pop("without_others", None)


@pytest.mark.parametrize("filtered", [1, 3, LAYERS])
@pytest.mark.parametrize(
    ("isolated", "shape"), [(True, {}), (False, {}), (True, WINDOWED)], ids=["isolated", "whole rows", "window"]
)
def test_the_gradient_is_that_of_selected_tokens_alone(
    without_others: Any, filtered: int, isolated: bool, shape: dict[str, Any]
) -> None:
    choice = choice_of(0.4)
    expected_of = model(isolated=isolated, **shape)
    without_others(expected_of, choice.mask, filtered)
    expected = gradient(expected_of, choice)
    found = gradient(model(filtered, isolated=isolated, **shape), choice)
    assert found.keys() == expected.keys()
    for name, part in found.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    exact = gradient(model(isolated=isolated, **shape), choice)
    # The head sees the same; the keys of the uppermost layer do not.
    name = f"lm.model.layers.{LAYERS - 1}.self_attn.k_proj.weight"
    assert torch.equal(found["lm.lm_head.weight"], exact["lm.lm_head.weight"])
    assert not torch.allclose(found[name], exact[name])


def test_where_all_tokens_are_selected_it_is_exact() -> None:
    exact, found = (gradient(model(filtered), choice_of(1.0)) for filtered in (0, LAYERS))
    for name, part in exact.items():
        torch.testing.assert_close(found[name], part, rtol=1e-9, atol=1e-12, msg=name)


def test_where_none_is_selected_it_is_0() -> None:
    assert all(not part.any() for part in gradient(model(2), choice_of(0.0)).values())


@pytest.mark.parametrize("filtered", [2, LAYERS])
def test_a_compared_pass_is_exact_and_tells_how_far_the_other_is_off(filtered: int) -> None:
    choice, compared = choice_of(0.4), model(filtered)
    exact, without = gradient(model(), choice), gradient(model(filtered), choice)
    backward = compared.backward_filter
    backward.compares, backward.leaves_out = True, False
    found = gradient(compared, choice)
    for name, part in exact.items():
        torch.testing.assert_close(found[name], part, rtol=1e-9, atol=1e-12, msg=name)
    upper = [name for name in exact if any(f"layers.{number}." in name for number in range(LAYERS - filtered, LAYERS))]
    one, other = (torch.cat([of[name].flatten() for name in upper]) for of in (exact, without))
    cosine = torch.cosine_similarity(one, other, dim=0)
    products = backward.products
    torch.testing.assert_close(products[0, 0] / (products[0, 1] * products[0, 2]).sqrt(), cosine)
    assert 0 < float(backward.cosine(lambda sums: sums)) <= float(cosine) < 1
    backward.forget()
    assert backward.cosine(lambda sums: sums).isnan()


def test_a_model_with_dropout_is_refused(says: Says) -> None:
    lm = model().lm
    require_no_dropout(lm)
    decoder_layers(lm)[0].self_attn.attention_dropout = 0.1  # type: ignore[assignment]
    with pytest.raises(ConfigError) as raised:
        require_no_dropout(lm)
    says(raised.value, "slm.backward", "0.1")
