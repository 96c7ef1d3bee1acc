from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from megaslm.config.schema import Architecture
from megaslm.model.attention import flash
from megaslm.model.documents import NO_KERNEL, Documents, attend, kernel_name
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Every
from tests.masked import masked_attention
from tests.messages import Says
from tests.toy import EOS_ID, SHAPE, Unsharded


def model(family: str, *, document_isolation: bool) -> SelectiveLM:
    lm = build_from_shape(Architecture.model_validate({**SHAPE, "family": family}), eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=0, standard_deviation=0.3, sharding=Unsharded())
    return SelectiveLM(lm.eval(), eos_id=EOS_ID, document_isolation=document_isolation)


def test_documents_start_after_eos_and_at_the_row() -> None:
    inputs = torch.tensor([[5, 6, EOS_ID, 7, EOS_ID, EOS_ID, 8], [5] * 7])
    documents = Documents.of_tokens(inputs, EOS_ID, torch.device("cpu"))
    assert documents.bounds.tolist() == [0, 3, 5, 6, 7, 14]
    assert documents.bounds.dtype == torch.int32
    assert documents.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert documents.max_length == 7


def test_without_isolation_a_row_is_a_document() -> None:
    documents = Documents.whole_rows(2, 3, torch.device("cpu"))
    assert documents.bounds.tolist() == [0, 3, 6]
    assert documents.positions.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mask_ends_at_documents_and_at_the_window(dtype: torch.dtype) -> None:
    documents = Documents(torch.tensor([0, 3, 5, 10], dtype=torch.int32), rows=2, length=5)
    mask = documents.mask(None, dtype)
    assert mask is not None
    assert mask.dtype == dtype
    assert mask[0, 0].exp().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert mask[1, 0, 4].exp().int().tolist() == [1, 1, 1, 1, 1]
    windowed = documents.mask(2, dtype)
    assert windowed is not None
    assert windowed[0, 0, 2].exp().int().tolist() == [0, 1, 1, 0, 0]


def test_whole_rows_need_no_mask_but_for_a_window() -> None:
    documents = Documents.whole_rows(2, 5, torch.device("cpu"))
    assert documents.mask(None, torch.float32) is None
    assert documents.mask(5, torch.float32) is None
    assert documents.mask(4, torch.float32) is not None


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_nothing_leaks_between_isolated_documents(family: str) -> None:
    rows = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(0))
    rows[:, 5] = EOS_ID
    changed = rows.clone()
    changed[:, :5] = (changed[:, :5] + 7) % 50 + 3
    isolated = model(family, document_isolation=True)
    assert torch.equal(isolated.measure(rows).losses[:, 6:], isolated.measure(changed).losses[:, 6:])
    assert not torch.equal(isolated.measure(rows).losses[:, :5], isolated.measure(changed).losses[:, :5])
    joined = model(family, document_isolation=False)
    assert not torch.equal(joined.measure(rows).losses[:, 6:], joined.measure(changed).losses[:, 6:])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_an_isolated_document_has_the_losses_it_has_alone(family: str) -> None:
    row = torch.randint(3, 60, (1, 13), generator=torch.Generator().manual_seed(0))
    row[:, 5] = EOS_ID
    isolated = model(family, document_isolation=True)
    torch.testing.assert_close(
        isolated.measure(row).losses[:, 6:], isolated.measure(row[:, 6:]).losses, rtol=1e-5, atol=1e-5
    )


def rows_of_all_kinds() -> Tensor:
    """A row that is one document, one of documents of one token, as in padding, and one of both and others."""
    rows = torch.randint(3, 60, (3, 81), generator=torch.Generator().manual_seed(2))
    rows[1] = EOS_ID
    rows[2, torch.tensor([0, 1, 4, 11, 50, 79])] = EOS_ID
    return rows


def trained(family: str, *, window: int | None, recomputes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of one pass, its gradients in one, and which targets are among the half of largest loss."""
    ours = model(family, document_isolation=True)
    if window is not None:
        ours.lm.config.sliding_window = window
    if recomputes:
        ours.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours.train()
    rows = rows_of_all_kinds()
    output: Any = ours(rows, Every(torch.ones(rows[:, 1:].numel(), dtype=torch.bool)))
    output.total.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in ours.parameters()])
    return output.losses, gradients, output.losses > output.losses.median()


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", 9), ("mistral", 70)])
def test_a_model_has_the_losses_and_gradients_that_masks_give(
    monkeypatch: pytest.MonkeyPatch, family: str, window: int | None, recomputes: bool
) -> None:
    losses, gradients, selected = trained(family, window=window, recomputes=recomputes)
    monkeypatch.setattr("megaslm.model.documents.document_attention", masked_attention)
    masked_losses, masked_gradients, masked_selected = trained(family, window=window, recomputes=recomputes)
    assert not torch.equal(losses, masked_losses)
    assert (losses - masked_losses).norm() <= 1e-5 * masked_losses.norm()
    assert (gradients - masked_gradients).norm() <= 1e-5 * masked_gradients.norm()
    assert torch.equal(selected, masked_selected)


class CausalLayer(nn.Module):
    """Of a layer `attend` reads only these."""

    is_causal = True
    num_key_value_groups = 2


def query_key_value() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 12, 8, generator=generator) for heads in (4, 2, 2))
    return query, key, value


@pytest.mark.parametrize(
    ("device", "dtype", "has_kernel", "name"),
    [
        ("cpu", torch.float32, False, "torch-cpu"),
        ("cuda", torch.bfloat16, True, flash.implementation()),
        ("cuda", torch.float32, True, NO_KERNEL),
        ("cuda", torch.bfloat16, False, NO_KERNEL),
    ],
)
def test_what_computes_attention_is_named(
    device: str, dtype: torch.dtype, has_kernel: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "has_kernel", lambda device: has_kernel)
    config = AutoConfig.for_model("llama", hidden_size=128, num_attention_heads=2, head_dim=64)
    assert kernel_name(config, torch.device(device), dtype) == name


def test_dropout_is_applied_within_documents() -> None:
    """Dropout is drawn anew for each pair of tokens, scales the rest up, and lets no other document in."""
    query, key, value = query_key_value()
    value = torch.ones_like(value)
    value[:, :, :5] = 1000.0
    documents = Documents(torch.tensor([0, 5, 12, 17, 24], dtype=torch.int32), rows=2, length=12)
    torch.manual_seed(0)
    dropped, _ = attend(CausalLayer(), query, key, value, None, dropout=0.5, documents=documents)
    assert dropped[:, 5:].max() <= 2.0
    assert 0.5 < float(dropped[:, 5:].mean()) < 1.5
    assert not torch.allclose(dropped[:, 5:], torch.ones(()))


@pytest.mark.parametrize(
    "asked",
    [
        {"softcap": 30.0},
        {"s_aux": torch.ones(4)},
        {"position_bias": torch.ones(1)},
        {"output_attentions": True},
        {"is_causal": False},
        {"sliding_window": 0},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_attention_of_another_kind_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(asked))):
        attend(CausalLayer(), *query_key_value(), None, **asked)


def test_a_mask_or_cached_keys_are_refused(says: Says) -> None:
    query, key, value = query_key_value()
    with pytest.raises(ValueError, match="attention_mask"):
        attend(CausalLayer(), query, key, value, torch.zeros(2, 1, 12, 12))
    with pytest.raises(ValueError) as refused:
        attend(CausalLayer(), query[:, :, :1], key, value, None)
    says(refused, "12 keys", "1 quer")
