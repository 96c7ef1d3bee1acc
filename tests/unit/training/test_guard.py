import numpy as np
import pytest

from megaslm.errors import NonFiniteLoss
from megaslm.training.guard import SkipCount, SpikeWatch
from tests.messages import Says

WINDOW_STEPS = 128


def watch_of(losses: list[float]) -> SpikeWatch:
    """A watch that has seen these losses, none of which was a spike."""
    watch = SpikeWatch(6.0, WINDOW_STEPS)
    assert [watch.add(step, loss) for step, loss in enumerate(losses, start=1)] == [None] * len(losses)
    return watch


def noisy(mean: float, steps: int = WINDOW_STEPS) -> list[float]:
    return list(np.random.default_rng(0).normal(mean, 0.1, steps))


def test_only_steps_skipped_in_a_row_stop_the_run(says: Says) -> None:
    count = SkipCount(3)
    for step, reason in enumerate(["a", "b", None, "c", "d"], start=1):
        count.add(step, reason)
    with pytest.raises(NonFiniteLoss) as refused:
        count.add(6, "2 losses are NaN")
    says(refused, "step 6", "3", "2 losses are NaN")


def test_a_resumed_run_counts_on(says: Says) -> None:
    count = SkipCount(3)
    count.add(1, "a")
    count.add(2, "b")
    with pytest.raises(NonFiniteLoss) as refused:
        SkipCount(3, count.in_a_row).add(3, "c")
    says(refused, "step 3", "3")


def test_a_run_may_be_told_to_stop_at_the_first_skipped_step() -> None:
    with pytest.raises(NonFiniteLoss, match="step 1"):
        SkipCount(1).add(1, "no reason")


def test_a_spike_is_told_with_the_level_it_stands_out_from(says: Says) -> None:
    losses = noisy(2.0)
    spike = watch_of(losses).add(129, 3.0)
    assert spike is not None
    assert (spike.step, spike.loss) == (129, 3.0)
    assert spike.mean == pytest.approx(np.mean(losses))
    assert spike.deviation == pytest.approx(np.std(losses))
    says(spike, "step 129", "3.0000")


def test_the_bound_is_so_many_deviations_above_the_mean_and_nothing_below_it_is_a_spike() -> None:
    losses = noisy(2.0)
    bound = float(np.mean(losses) + 6.0 * np.std(losses))
    assert watch_of(losses).add(129, bound - 1e-6) is None
    assert watch_of(losses).add(129, bound + 1e-6) is not None
    assert watch_of(losses).add(129, -50.0) is None


def test_nothing_is_judged_before_the_window_is_full() -> None:
    watch = watch_of(noisy(2.0, WINDOW_STEPS - 2))
    assert watch.add(127, 50.0) is None


def test_a_spike_does_not_hide_the_next_one() -> None:
    watch = watch_of(noisy(2.0))
    spikes = [watch.add(129, 3.0), watch.add(130, 2.0), watch.add(131, 3.0), watch.add(132, 3.0)]
    assert [spike is not None for spike in spikes] == [True, False, True, True]


def test_a_new_level_is_accepted_after_an_eighth_of_the_window() -> None:
    watch = watch_of(noisy(2.0))
    level = noisy(3.5, 2 * WINDOW_STEPS)
    found = [watch.add(step, loss) for step, loss in enumerate(level, start=129)]
    assert [spike is not None for spike in found] == [True] * 16 + [False] * 240
    # By then the window holds nothing but the new level, which has its own spikes.
    assert watch.add(1000, 4.5) is not None


def test_a_falling_loss_and_clean_noise_are_no_spikes() -> None:
    steps = np.arange(3000)
    losses = 2.0 + 8.0 * np.exp(-steps / 300) + np.random.default_rng(1).normal(0.0, 0.05, len(steps))
    watch_of(list(losses))


def test_a_watch_resumes_from_the_losses_of_another() -> None:
    first = watch_of(noisy(2.0))
    resumed = SpikeWatch(6.0, WINDOW_STEPS, first.losses)
    assert resumed.add(129, 3.0) == first.add(129, 3.0) is not None
