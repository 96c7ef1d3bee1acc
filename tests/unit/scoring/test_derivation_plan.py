"""Which earlier work a derived dataset continues."""

import pytest

from megaslm.dataset.manifest import Reference
from megaslm.errors import DataError
from megaslm.scoring.derivation_plan import DerivationPlan
from tests.messages import Says


def plan(attention: str | None) -> DerivationPlan:
    reference = Reference(
        weights_sha256="0" * 64, name="", precision="bf16", attention=attention, document_isolation=True, window=8,
        stride=8, batch_rows=1, dataset_sha256="",
    )  # fmt: skip
    return DerivationPlan(
        kind="scored", tokenizer_sha256="", vocab_size=9, seq_len=8, eos_id=1, domains={"a": 0}, reference=reference,
        mask=None,
    )  # fmt: skip


def test_losses_of_another_kernel_of_attention_do_not_join(says: Says) -> None:
    plan("FA2").require_continues(plan("FA2"), "scored")
    with pytest.raises(DataError) as refused:
        plan("mask").require_continues(plan("FA2"), "scored")
    says(refused, "scored", "reference.attention = FA2 ", "mask ")


def test_work_of_versions_that_did_not_note_attention_resumes() -> None:
    plan("FA2").require_continues(plan(None), "scored")
