from decimal import Decimal

import pytest
import torch
from torch import Tensor

from megaslm.slm.objective import CausalObjective, Scope, SelectiveObjective, Targets, valid_targets
from megaslm.slm.selection import on_this_rank_alone, target_keys

EOS = 2


def micro_batch(seed: int, rows: int = 3, length: int = 10) -> tuple[Targets, Tensor]:
    """Targets with a few invalid ones, and the losses a model might have there."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 12, (rows, length + 1), generator=generator)
    ref_loss = torch.rand(rows, length, generator=generator) * 4
    losses = torch.rand(rows, length, generator=generator) * 4
    keys = target_keys(torch.arange(rows) + 100 * seed, 0, length)
    return Targets(valid_targets(tokens, EOS), keys, ref_loss), losses


def never_measured(number: int) -> Tensor:
    raise AssertionError(f"micro-batch {number} was measured without need")


def test_what_follows_eos_is_no_target_and_eos_is_one() -> None:
    tokens = torch.tensor([[5, EOS, 7, 8, EOS, EOS, EOS]])
    assert valid_targets(tokens, EOS).tolist() == [[True, False, True, True, False, False]]


@pytest.mark.parametrize("scope", ["batch", "sequence", "microbatch"])
def test_k_1_selects_exactly_the_causal_targets(scope: Scope) -> None:
    batches = [micro_batch(seed) for seed in range(2)]
    targets = [batch[0] for batch in batches]
    causal = CausalObjective().plan_step(targets, never_measured, on_this_rank_alone)
    selective = SelectiveObjective(Decimal(1), scope).plan_step(
        targets, lambda number: batches[number][1], on_this_rank_alone
    )
    assert int(causal.selected_count) == int(selective.selected_count) == int(causal.target_count)
    for (_, losses), ours, theirs in zip(batches, selective.selects, causal.selects, strict=True):
        assert torch.equal(ours(losses.flatten()), theirs(losses.flatten()))


def test_sequence_keeps_k_of_each_row() -> None:
    targets, losses = micro_batch(0)
    plan = SelectiveObjective(Decimal("0.5"), "sequence").plan_step([targets], never_measured, on_this_rank_alone)
    selected = plan.selects[0](losses.flatten()).view_as(losses)
    for row in range(3):
        valid = targets.valid[row]
        assert int(selected[row].sum()) == (int(valid.sum()) + 1) // 2
        excess = (losses - targets.ref_loss)[row]  # type: ignore[operator]
        assert excess[selected[row]].min() >= excess[valid & ~selected[row]].max()
    assert int(plan.selected_count) == int(selected.sum())


def test_microbatch_keeps_k_of_each_micro_batch() -> None:
    batches = [micro_batch(seed) for seed in range(3)]
    plan = SelectiveObjective(Decimal("0.3"), "microbatch").plan_step(
        [targets for targets, _ in batches], never_measured, on_this_rank_alone
    )
    counts = [int(select(losses.flatten()).sum()) for (_, losses), select in zip(batches, plan.selects, strict=True)]
    assert counts == [int(Decimal("0.3") * int(targets.valid.sum()) + Decimal("0.5")) for targets, _ in batches]
    assert int(plan.selected_count) == sum(counts)


def test_batch_is_the_same_set_in_one_micro_step_and_in_three() -> None:
    batches = [micro_batch(seed) for seed in range(3)]
    joined = Targets(
        *(torch.cat([getattr(targets, name) for targets, _ in batches]) for name in ("valid", "keys", "ref_loss"))
    )
    all_losses = torch.cat([losses for _, losses in batches])
    objective = SelectiveObjective(Decimal("0.6"), "batch")
    at_once = objective.plan_step([joined], never_measured, on_this_rank_alone)
    in_three = objective.plan_step(
        [targets for targets, _ in batches], lambda number: batches[number][1], on_this_rank_alone
    )
    one = at_once.selects[0](all_losses.flatten())
    three = torch.cat([select(losses.flatten()) for (_, losses), select in zip(batches, in_three.selects, strict=True)])
    assert torch.equal(one, three)
    assert int(one.sum()) == int(at_once.selected_count) == int(in_three.selected_count)


@pytest.mark.parametrize("scope", ["batch", "sequence", "microbatch"])
def test_an_invalid_target_is_never_selected_however_large_its_excess(scope: Scope) -> None:
    targets, losses = micro_batch(0)
    losses = torch.where(targets.valid, losses, 1000.0)
    plan = SelectiveObjective(Decimal(1), scope).plan_step([targets], never_measured, on_this_rank_alone)
    assert not (plan.selects[0](losses.flatten()).view_as(losses) & ~targets.valid).any()


@pytest.mark.parametrize("scope", ["batch", "sequence", "microbatch"])
def test_a_step_without_targets_selects_nothing(scope: Scope) -> None:
    targets, losses = micro_batch(0)
    empty = Targets(torch.zeros_like(targets.valid), targets.keys, targets.ref_loss)
    plan = SelectiveObjective(Decimal("0.6"), scope).plan_step([empty], never_measured, on_this_rank_alone)
    assert int(plan.selected_count) == 0
    assert not plan.selects[0](losses.flatten()).any()
