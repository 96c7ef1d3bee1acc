"""The operator against its definition, an explicit mask over all pairs of tokens."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, library

from megaslm.model.attention import cpu
from megaslm.model.attention.operator import document_attention
from tests.masked import masked_attention

SHORT, LONG = cpu._LONGEST_PADDED_TOKENS, cpu._WINDOW_BLOCK_TOKENS


@dataclass(frozen=True)
class Case:
    """Documents of these lengths; a `head` is of 8 values."""

    lengths: tuple[int, ...]
    window: int | None = None
    heads: int = 4
    key_heads: int = 2
    dtype: torch.dtype = torch.float32

    @property
    def bounds(self) -> Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0).to(torch.int32)

    def tensors(self) -> list[Tensor]:
        """Query, key and value."""
        generator = torch.Generator().manual_seed(0)
        tokens = sum(self.lengths)
        return [
            torch.randn(tokens, heads, 8, generator=generator).to(self.dtype).requires_grad_()
            for heads in (self.heads, self.key_heads, self.key_heads)
        ]


def results(case: Case, attention: object) -> list[Tensor]:
    """The output, the logarithms, and the gradients of query, key and value."""
    tensors = case.tensors()
    output, logsumexp = attention(*tensors, case.bounds, max(case.lengths), case.window, 0.3)  # type: ignore[operator]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    return [output.detach(), logsumexp.detach(), *torch.autograd.grad(output, tensors, gradient)]


def require_equal(case: Case, limit: float = 1e-5) -> None:
    for found, expected in zip(results(case, document_attention), results(case, masked_attention), strict=True):
        assert found.shape == expected.shape
        # Some gradients are exactly 0: those of the query of a document of one token.
        assert (found.double() - expected.double()).norm() <= limit * (1.0 + expected.double().norm())


CASES = {
    "one document": Case((300,)),
    "documents of one token": Case((1,) * 20),
    "a row of one-token documents beside a long one": Case((150, *(1,) * 150)),
    "every kind of length": Case((SHORT, 1, SHORT + 1, 3, 200, 17, SHORT - 1)),
    "empty documents": Case((0, 5, 0, 0, 70, 0)),
    "a head of keys for each": Case((90, 3), heads=2, key_heads=2),
    "one head of keys": Case((90, 3), heads=4, key_heads=1),
    "a window of one token": Case((90, 3), window=1),
    "a window shorter than documents": Case((90, 3, 20), window=7),
    "a window as long as a document": Case((90, 3, 20), window=20),
    "a window longer than documents": Case((90, 3, 20), window=91),
    "a document of several blocks": Case((2 * LONG + 40, 5), window=33),
    "a window longer than a block": Case((3 * LONG, 5), window=LONG + 9),
    "float64": Case((90, 3, 20), window=7, dtype=torch.float64),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_a_mask(name: str) -> None:
    require_equal(CASES[name])


def test_bf16_is_about_as_near_to_float64_as_the_mask_is() -> None:
    case, exact = Case((90, 3, 20), window=31, dtype=torch.bfloat16), Case((90, 3, 20), window=31, dtype=torch.float64)
    exact_tensors = [tensor.detach().double().requires_grad_() for tensor in case.tensors()]
    expected, _ = masked_attention(*exact_tensors, exact.bounds, 90, 31, 0.3)
    ours, masks = (results(case, attention)[0].double() for attention in (document_attention, masked_attention))
    assert (ours - expected).norm() <= 2.0 * (masks - expected).norm()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    key_heads = draw(st.sampled_from([1, 2]))
    return Case(
        tuple(draw(st.lists(st.one_of(st.integers(1, 5), st.integers(0, 170)), min_size=1, max_size=12).filter(any))),
        window=draw(st.one_of(st.none(), st.integers(1, 180))),
        heads=key_heads * draw(st.sampled_from([1, 3])),
        key_heads=key_heads,
        dtype=torch.float64,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_any_documents_have_the_results_and_gradients_of_a_mask(case: Case) -> None:
    require_equal(case, limit=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(), cases())
def test_a_document_has_the_same_bits_whatever_else_is_in_the_batch(case: Case, other: Case) -> None:
    alone = Case(case.lengths, case.window)
    among = Case((*case.lengths, *other.lengths), case.window)
    tensors, tokens = among.tensors(), sum(case.lengths)
    output, _ = document_attention(*tensors, among.bounds, 200, case.window, 0.3)
    same, _ = document_attention(*(tensor[:tokens] for tensor in tensors), alone.bounds, 200, case.window, 0.3)
    assert torch.equal(output[:tokens], same)


@pytest.mark.parametrize("lengths", [(3, 5), (3, 4), (80, 70)], ids=["padded", "padded together", "one by one"])
def test_nan_stays_in_its_document(lengths: tuple[int, ...]) -> None:
    case = Case(lengths)
    tensors = case.tensors()
    for tensor in tensors:
        tensor.data[lengths[0] :] = torch.nan
    output, _ = document_attention(*tensors, case.bounds, max(lengths), None, 0.3)
    gradients = torch.autograd.grad(output[: lengths[0]].sum(), tensors)
    for tensor in (output, *gradients):
        assert tensor[: lengths[0]].isfinite().all()
        assert tensor[: lengths[0]].any()


def test_gradients_are_the_same_bits_each_time() -> None:
    case = Case((200, *(3, 9) * 20), window=40)
    for once, again in zip(results(case, document_attention), results(case, document_attention), strict=True):
        assert torch.equal(once, again)


def test_what_inference_prepared_serves_training() -> None:
    case = Case((7, 90, 2, 33))
    with torch.inference_mode():
        document_attention(*case.tensors(), case.bounds, 90, None, 0.3)
    require_equal(case)


def test_torch_finds_the_operator_sound() -> None:
    """Its shapes and strides as compilers foresee them, its gradient, and that it changes no input."""
    case = Case((7, 90, 2), window=20)
    library.opcheck(document_attention, (*case.tensors(), case.bounds, 90, case.window, 0.3))
