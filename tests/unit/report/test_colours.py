"""The colours of a report's lines for readers who see fewer colours than others."""

import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

Colours = NDArray[np.float64]

CSS = files("megaslm.report").joinpath("page/page.css").read_text(encoding="utf-8")
THEMES = dict(zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True))
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHTS = {
    "all three cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
LEAST_DIFFERENCE = 15.0
"""Of two lines, in CIELAB. A reader tells patches apart from about 2 on; lines are thin and lie apart."""
LEAST_CONTRAST = 3.0
"""Of a line with the ground: WCAG 2.1, 1.4.11."""


def linear(theme: str, pattern: str) -> Colours:
    """(colours, 3): linear RGB of the theme's variables whose names match."""
    codes = re.findall(rf"--(?:{pattern}): #(\w+)", THEMES[theme])
    bytes_of = [bytes.fromhex(code if len(code) == 6 else "".join(2 * digit for digit in code)) for code in codes]
    values = np.array([list(triple) for triple in bytes_of]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colours: Colours) -> Colours:
    """(colours, 3): CIELAB of linear RGB, under D65."""
    relative = colours @ TO_XYZ.T / WHITE
    roots = np.where(relative > 216 / 24_389, np.cbrt(relative), (24_389 / 27 * relative + 16) / 116)
    x, y, z = roots.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("theme", THEMES)
def test_any_two_lines_differ_in_colour(theme: str, sight: str) -> None:
    seen = lab(np.clip(linear(theme, r"c\d") @ SIGHTS[sight].T, 0, 1))
    assert len(seen) == 7
    differences = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(range(7), 2)}
    assert {pair: found for pair, found in differences.items() if found < LEAST_DIFFERENCE} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_lines_stand_out_from_the_ground(theme: str) -> None:
    luminances = linear(theme, r"c\d") @ TO_XYZ[1] + 0.05
    ground = linear(theme, "ground") @ TO_XYZ[1] + 0.05
    assert (np.maximum(luminances / ground, ground / luminances) >= LEAST_CONTRAST).all()
