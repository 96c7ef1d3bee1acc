import numpy as np
import pytest
import torch
from torch import Tensor

from megaslm.observe.records import EXCESS_EDGES_NATS
from megaslm.slm.choice import HeadOutput, no_threshold
from megaslm.slm.keys import target_keys
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import POSITION_BANDS, SelectionSummary, selection_sums, summarise

ROWS, LENGTH, DOMAINS = 40, 50, 3


def targets_and_losses(seed: int, *, scored: bool = True) -> tuple[Targets, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(ROWS, LENGTH, generator=generator) < 0.9
    ref_loss = 3.0 + torch.randn(ROWS, LENGTH, generator=generator)
    losses = 3.5 + torch.randn(ROWS, LENGTH, generator=generator)
    return Targets(valid, target_keys(torch.arange(ROWS), 0, LENGTH), {"ref_loss": ref_loss} if scored else {}), losses


def sums_of(
    targets: Targets, losses: Tensor, measured: Tensor | None = None, applied: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    selected = targets.valid & (losses > 3.2)
    domain = torch.arange(ROWS) % 2  # The third domain has no row.
    measured = targets.valid if measured is None else measured
    output = HeadOutput(losses[selected].sum(), losses, selected, no_threshold(losses.device), applied)
    sums = selection_sums(output, measured, targets, domain, DOMAINS)
    return sums, selected, domain


def test_micro_batches_add_up_to_the_step() -> None:
    parts: list[Tensor] = []
    all_losses, all_selected, all_valid, all_excess, all_domains = [], [], [], [], []
    for seed in range(3):
        targets, losses = targets_and_losses(seed)
        sums, selected, domain = sums_of(targets, losses)
        parts.append(sums)
        all_losses.append(losses)
        all_selected.append(selected)
        all_valid.append(targets.valid)
        all_excess.append((losses - targets.column("ref_loss"))[targets.valid])
        all_domains.append(domain[:, None].expand_as(losses))
    losses, selected, valid, domain = map(torch.cat, (all_losses, all_selected, all_valid, all_domains))
    found = summarise(torch.stack(parts).sum(0).tolist())

    assert (found.selected, found.valid, found.not_finite) == (int(selected.sum()), int(valid.sum()), 0)
    assert found.selected_loss == pytest.approx(float(losses[selected].double().mean()), rel=1e-6)
    assert found.all_loss == pytest.approx(float(losses[valid].double().mean()), rel=1e-6)
    assert found.domain_ratio == {
        number: pytest.approx(float(selected[domain == number].sum() / valid[domain == number].sum()))
        for number in (0, 1)
    }
    assert found.domain_rows == (60, 60, 0)
    excess = torch.cat(all_excess)
    counted, _ = np.histogram(excess.clamp(-3.9, 3.9).numpy(), EXCESS_EDGES_NATS)
    assert found.excess_counts == tuple(counted)
    bands = torch.arange(LENGTH) * POSITION_BANDS // LENGTH
    for name, mask in (("position_selected", selected), ("position_valid", valid)):
        assert getattr(found, name) == tuple(int(mask[:, bands == band].sum()) for band in range(POSITION_BANDS))
    assert found.attended == 3 * ROWS * LENGTH**2 / 2
    for name, part in (("p05", 0.05), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p95", 0.95)):
        assert found.excess_quantiles[name] == pytest.approx(float(torch.quantile(excess, part)), abs=1 / 32)


def test_a_token_attends_within_its_document() -> None:
    targets, losses = targets_and_losses(0)
    bounds = torch.tensor([0, 10, LENGTH, ROWS * LENGTH], dtype=torch.int32)
    none = torch.zeros_like(targets.valid)
    output = HeadOutput(losses.sum(), losses, none, no_threshold(losses.device))
    sums = selection_sums(output, none, targets, torch.zeros(ROWS, dtype=torch.int64), 1, bounds)
    assert summarise(sums.tolist()).attended == sum(n**2 for n in (10, LENGTH - 10, (ROWS - 1) * LENGTH)) / 2


def test_what_was_not_measured_is_not_reported() -> None:
    targets, losses = targets_and_losses(0)
    sums, selected, _ = sums_of(targets, losses, measured=targets.valid & (losses > 3.2))
    found = summarise(sums.tolist())
    assert found.all_loss is None
    assert found.excess_quantiles == {}
    assert found.selected == int(selected.sum())
    assert found.selected_loss > 3.2


def test_weights_are_reported_beside_a_loss_without_them() -> None:
    targets, losses = targets_and_losses(0)
    weights = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(1))
    applied = weights.where(targets.valid & (losses > 3.2), 0.0)
    plain = summarise(sums_of(targets, losses)[0].tolist())
    weighted = summarise(sums_of(targets, losses, applied=applied)[0].tolist())
    assert plain.mean_weight is None
    assert weighted.mean_weight == pytest.approx(float(applied.double().sum() / plain.selected), rel=1e-12)
    assert weighted.selected_loss == plain.selected_loss


def test_without_a_reference_there_is_no_excess() -> None:
    found = summarise(sums_of(*targets_and_losses(0, scored=False))[0].tolist())
    assert found.excess_quantiles == {}
    assert found.all_loss is not None


def test_excess_beyond_the_limits_counts_at_the_limits() -> None:
    targets, _ = targets_and_losses(0)
    found = summarise(sums_of(targets, targets.column("ref_loss") + 1000.0)[0].tolist())
    assert all(value == pytest.approx(16.0, abs=1 / 32) for value in found.excess_quantiles.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_counted_where_they_matter(value: float) -> None:
    targets, losses = targets_and_losses(0)
    for where in (targets.valid, ~targets.valid):
        losses[tuple(where.nonzero()[0].tolist())] = value
    assert summarise(sums_of(targets, losses)[0].tolist()).not_finite == 1


def test_a_step_without_targets_is_all_zeros() -> None:
    sums, *_ = sums_of(*targets_and_losses(0))
    assert summarise([0.0] * len(sums)) == SelectionSummary(
        selected_loss=0.0,
        mean_weight=0.0,
        all_loss=0.0,
        selected=0,
        valid=0,
        not_finite=0,
        excess_quantiles={},
        excess_counts=(),
        domain_ratio={},
        domain_rows=(0, 0, 0),
        position_selected=(0,) * POSITION_BANDS,
        position_valid=(0,) * POSITION_BANDS,
        attended=0.0,
    )
