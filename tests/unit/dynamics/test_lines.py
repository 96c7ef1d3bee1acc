"""The line of each token is that of numpy, and its class that of the paper's rule."""

import numpy as np

from megaslm.dynamics.lines import CLASSES, classify, fit_lines, shares, shares_over_time


def test_the_lines_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    x = np.cumsum(generator.integers(1, 5, 9)).astype(float) * 1e9
    losses = generator.normal(4, 1, (50, 9)).astype(np.float32)
    found = fit_lines(x, losses)
    slope, intercept = np.polyfit(x, losses.T.astype(np.float64), 1)
    assert np.allclose(found.slope, slope, rtol=1e-6)
    assert np.allclose(found.intercept, intercept, rtol=1e-6)
    assert np.allclose(found.change, slope * (x[-1] - x[0]), rtol=1e-6)
    around = losses - (slope[:, None] * x + intercept[:, None])
    assert np.allclose(found.fluctuation, around.std(axis=1), rtol=1e-5)


def test_planted_classes_are_found_exactly() -> None:
    x = np.arange(6.0)
    planted = {"H→H": (6.0, 6.1), "L→H": (1.0, 1.3), "H→L": (3.0, 2.7), "L→L": (0.5, 0.4)}
    counts = {"H→H": 11, "L→H": 12, "H→L": 26, "L→L": 51}
    losses = np.concatenate([np.tile(np.linspace(*planted[name], 6), (count, 1)) for name, count in counts.items()])
    classes = classify(fit_lines(x, losses).change, losses[:, -1])
    assert dict(zip(CLASSES, shares(classes).round(6).tolist(), strict=True)) == {
        name: count / 100 for name, count in counts.items()
    }


def test_a_change_of_just_the_limit_is_flat_and_a_mean_loss_is_low() -> None:
    classes = classify(np.array([-0.2, 0.2, -0.2001, 0.2001, 0.0]), np.array([1.0, 1.0, 1.0, 1.0, 1.0]))
    assert [CLASSES[number] for number in classes] == ["L→L", "L→L", "H→L", "L→H", "L→L"]


def test_shares_over_time_are_those_of_the_measurements_so_far() -> None:
    losses = np.array([[1.0, 1.0, 1.0, 4.0], [2.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]])
    found = shares_over_time(np.arange(4.0), losses, 3) * len(losses)
    assert found.tolist() == [[2, 0, 0, 1], [0, 1, 0, 2]]
