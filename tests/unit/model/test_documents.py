import pytest
import torch

from megaslm.config.schema import Architecture
from megaslm.model.documents import attention_within_documents, document_positions
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from tests.toy import EOS_ID, SHAPE, Unsharded


def model(family: str, *, document_isolation: bool) -> SelectiveLM:
    lm = build_from_shape(Architecture.model_validate({**SHAPE, "family": family}), eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=0, standard_deviation=0.3, sharding=Unsharded())
    return SelectiveLM(lm.eval(), eos_id=EOS_ID, document_isolation=document_isolation)


def test_documents_start_after_eos_and_at_the_row() -> None:
    document, position = document_positions(torch.tensor([[5, 6, EOS_ID, 7, EOS_ID, EOS_ID, 8]]), EOS_ID)
    assert document.tolist() == [[0, 0, 0, 1, 1, 2, 3]]
    assert position.tolist() == [[0, 1, 2, 0, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_ends_at_documents_and_at_the_window(dtype: torch.dtype) -> None:
    document = torch.tensor([[0, 0, 0, 1, 1]])
    mask = attention_within_documents(document, None, dtype)
    assert mask.dtype == dtype
    assert mask[0, 0].exp().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert attention_within_documents(document, 2, dtype)[0, 0, 2].exp().int().tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_nothing_leaks_between_isolated_documents(family: str) -> None:
    rows = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(0))
    rows[:, 5] = EOS_ID
    changed = rows.clone()
    changed[:, :5] = (changed[:, :5] + 7) % 50 + 3
    isolated = model(family, document_isolation=True)
    assert torch.equal(isolated.measure(rows)[:, 6:], isolated.measure(changed)[:, 6:])
    assert not torch.equal(isolated.measure(rows)[:, :5], isolated.measure(changed)[:, :5])
    joined = model(family, document_isolation=False)
    assert not torch.equal(joined.measure(rows)[:, 6:], joined.measure(changed)[:, 6:])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_an_isolated_document_has_the_losses_it_has_alone(family: str) -> None:
    row = torch.randint(3, 60, (1, 13), generator=torch.Generator().manual_seed(0))
    row[:, 5] = EOS_ID
    isolated = model(family, document_isolation=True)
    torch.testing.assert_close(isolated.measure(row)[:, 6:], isolated.measure(row[:, 6:]), rtol=1e-5, atol=1e-5)
