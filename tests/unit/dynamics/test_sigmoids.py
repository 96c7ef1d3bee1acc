"""The sigmoid of each token has the parameters that its losses were made with."""

import numpy as np

from megaslm.dynamics.sigmoids import fit_sigmoids


def curve(x: np.ndarray, end: float, height: float, midpoint: float, width: float) -> np.ndarray:
    return end + height / (1 + np.exp((x - midpoint) / width))


X = np.linspace(0, 15e9, 16)


def test_known_parameters_are_recovered() -> None:
    planted = [(0.5, 3.0, 7.3e9, 0.6e9), (1.0, 0.8, 4.1e9, 1.2e9), (4.0, -2.0, 9.9e9, 0.9e9)]
    found = fit_sigmoids(X, np.stack([curve(X, *one) for one in planted]))
    assert (found.r2 > 0.99999).all()
    for number, (end, height, midpoint, width) in enumerate(planted):
        assert np.isclose(found.end[number], end, atol=0.01)
        assert np.isclose(found.height[number], height, atol=0.02)
        assert np.isclose(found.midpoint[number], midpoint, rtol=0.01)
        assert np.isclose(found.width[number], width, rtol=0.03)
    assert found.is_step.tolist() == [True, True, False]


def test_noise_a_line_and_a_constant_are_no_steps() -> None:
    generator = np.random.default_rng(0)
    losses = np.stack([generator.normal(4, 1, 16), np.linspace(4, 1, 16), np.full(16, 2.0)])
    found = fit_sigmoids(X, losses)
    assert found.is_step.tolist() == [False, False, False]
    assert found.r2[2] == 0
    assert found.height[2] == 0


def test_no_curve_of_a_dense_grid_fits_better() -> None:
    generator = np.random.default_rng(1)
    losses = curve(X, 1.0, 2.0, 6e9, 1e9) + generator.normal(0, 0.1, (5, 16))
    found = fit_sigmoids(X, losses)
    left = ((losses - losses.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    for midpoint in np.linspace(0, 15e9, 61):
        for width in np.geomspace(0.16e9, 7.4e9, 40):
            design = np.stack([np.ones(16), curve(X, 0, 1, midpoint, width)], axis=1)
            _, squares, rank, _ = np.linalg.lstsq(design, losses.T, rcond=None)
            if rank == 2:
                assert (1 - squares / left <= found.r2 + 1e-4).all()


def test_tokens_do_not_depend_on_one_another() -> None:
    generator = np.random.default_rng(2)
    losses = generator.normal(3, 1, (7, 16))
    together, alone = fit_sigmoids(X, losses), fit_sigmoids(X, losses[3:4])
    assert np.allclose([together.midpoint[3], together.r2[3]], [alone.midpoint[0], alone.r2[0]])
