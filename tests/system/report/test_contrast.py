"""The contrast of every text of a report's page with what lies behind it."""

import pytest

from tests.system.report.conftest import Open
from tests.system.report.document import document

LEAST_CONTRAST = 4.5
"""WCAG 2.1, 1.4.3, for text of any size."""
FAINT = """(least) => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const layer = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([red, green, blue, alpha], below) =>
    [red, green, blue].map((value, place) => value * alpha + below[place] * (1 - alpha));
  const luminance = (colour) => colour.map((value) =>
    (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0.05);
  const behind = (node) => {
    const below = node.parentElement ? behind(node.parentElement) : [1, 1, 1];
    return over(layer(getComputedStyle(node).backgroundColor), below);
  };
  const faint = new Set();
  let read = 0;
  for (const node of document.querySelectorAll('body *')) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility()) continue;
    read += 1;
    const style = getComputedStyle(node);
    const ground = behind(node);
    let opacity = 1;
    for (let at = node; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
    const [red, green, blue, alpha] = layer(node.ownerSVGElement ? style.fill : style.color);
    const [one, other] = [luminance(over([red, green, blue, alpha * opacity], ground)), luminance(ground)];
    const contrast = Math.max(one, other) / Math.min(one, other);
    if (contrast < least) faint.add(`${node.tagName} ${node.getAttribute('class')} ${contrast.toFixed(1)}`);
  }
  return { read, faint: [...faint] };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_text_is_faint(open_page: Open, scheme: str) -> None:
    changed = document()
    rows = changed["heat"][0]["rows"]
    for place in range(0, len(rows[0]["pieces"]), 2):
        rows[0]["pieces"][place] = ""
    page = open_page(changed, color_scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    for colouring in page.locator("#heat input[name=colouring]").all():
        colouring.check()
        found = page.evaluate(FAINT, LEAST_CONTRAST)
        assert found["read"] > len(rows[0]["pieces"])
        assert found["faint"] == []
