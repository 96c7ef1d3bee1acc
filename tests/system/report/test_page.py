"""The page of a report in a browser: what it shows, and what its controls change."""

from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tests.reported import means_of_spans
from tests.system.report.conftest import Open
from tests.system.report.document import (
    CHECKPOINTS,
    KEEP_RATIO,
    ROW_TARGETS,
    Document,
    document,
    kept_of,
    losses_of,
    packed,
    rows_of_text,
)

PLOT = "#curves .plot"


def underlined(page: Any) -> np.ndarray:
    """(R, L): the targets that the heat map underlines, row by row."""
    rows = []
    for row in range(len(rows_of_text())):
        page.locator("#heat .rows select").select_option(str(row))
        kept = "(spans) => spans.map((span) => span.classList.contains('kept'))"
        rows.append(page.locator("#heat .text .token").evaluate_all(kept)[1:])
    return np.array(rows)


def expected(checkpoint: int, ratio: str) -> np.ndarray:
    """What megaslm.slm keeps; the page has losses in half precision but for the last ones."""
    losses, ref_loss, valid = losses_of(rows_of_text())
    stored = losses[checkpoint]
    if checkpoint < CHECKPOINTS - 1:
        stored = stored.astype(np.float16).astype(np.float32)
    return kept_of(stored, ref_loss, valid, ratio)


def test_the_own_ratio_keeps_what_the_run_keeps_and_the_slider_what_the_method_keeps(open_page: Open) -> None:
    page = open_page(document())
    assert (underlined(page) == expected(CHECKPOINTS - 1, str(KEEP_RATIO))).all()
    for percent in ("35", "0", "100", "59.5"):
        page.locator("#ratio").fill(percent)
        kept = expected(CHECKPOINTS - 1, str(Decimal(percent) / 100))
        assert (underlined(page) == kept).all()
        assert f"{kept.sum()} of" in page.locator("#heat .count").inner_text()
    page.locator("#own-ratio").click()
    assert (underlined(page) == expected(CHECKPOINTS - 1, str(KEEP_RATIO))).all()


def test_another_checkpoint_has_other_losses_and_keeps_others(open_page: Open) -> None:
    page = open_page(document())
    page.locator("#checkpoint").fill("1")
    assert (underlined(page) == expected(1, str(KEEP_RATIO))).all()
    page.locator("#checkpoint").focus()
    page.keyboard.press("ArrowLeft")
    assert (underlined(page) == expected(0, str(KEEP_RATIO))).all()
    page.locator("#heat .text .token").nth(1).hover()
    loss = losses_of(rows_of_text())[0][0, -1, 0]
    assert f"{float(np.float16(loss)):.3f}" in page.locator("#heat .reading").inner_text()


def test_rows_that_are_ranked_on_their_own_keep_a_share_each(open_page: Open) -> None:
    changed = document()
    changed["heat"][0]["scope"] = "sequence"
    page = open_page(changed)
    page.locator("#ratio").fill("25")
    losses, ref_loss, valid = losses_of(rows_of_text())
    rows = [kept_of(losses[-1][row], ref_loss[row], valid[row], "0.25") for row in range(len(valid))]
    assert (underlined(page) == np.stack(rows)).all()


def test_a_cap_on_the_reference_loss_leaves_targets_out(open_page: Open) -> None:
    changed = document()
    changed["heat"][0]["max_ref_loss"] = 1.0
    page = open_page(changed)
    page.locator("#ratio").fill("100")
    _, ref_loss, valid = losses_of(rows_of_text())
    assert (underlined(page) == (valid & (ref_loss <= 1.0))).all()


def test_spans_are_ranked_by_their_means(open_page: Open) -> None:
    changed = document()
    heat = changed["heat"][0] | {"span_reach": 3}
    changed["heat"][0] = heat
    page = open_page(changed)
    page.locator("#ratio").fill("30")
    losses, ref_loss, valid = losses_of(rows_of_text())
    excess = losses[-1] - ref_loss.astype(np.float32)
    means = means_of_spans(excess, valid, [row["new_document"] for row in heat["rows"]], 3)
    kept = underlined(page)
    assert kept.sum() == np.floor(0.3 * valid.sum() + 0.5)
    assert not (kept & ~valid).any()
    assert means[kept].min() >= means[valid & ~kept].max() - 2**-19
    page.locator("#heat .text .token").nth(1).hover()
    assert f"{means[-1, 0]:+.3f}".replace("-", "−") in page.locator("#heat .reading").inner_text()


def test_a_ranking_that_the_page_cannot_make_is_shown_as_the_run_made_it(open_page: Open) -> None:
    changed = document()
    kept = np.arange(3 * ROW_TARGETS).reshape(3, -1) % 3 == 0
    changed["heat"][0] |= {"criterion": "entropy", "kept_by_run": packed(kept, "bits")}
    changed["heat"][0]["checkpoints"][-1]["kept"] = packed(kept, "bits")
    page = open_page(changed)
    assert (underlined(page) == kept).all()
    assert page.locator("#ratio").count() == 0


def test_a_run_without_a_reference_is_ranked_by_its_loss_and_starts_with_all(open_page: Open) -> None:
    changed = document()
    changed["heat"] = [changed["heat"][1] | {"criterion": "loss", "ref_loss": None}]
    page = open_page(changed)
    losses, _, valid = losses_of(rows_of_text())
    assert (underlined(page) == valid).all()
    page.locator("#ratio").fill("50")
    assert (underlined(page) == kept_of(losses[-1], np.zeros_like(losses[-1]), valid, "0.5")).all()
    assert page.get_by_label("excess loss").count() == 0


def test_colours_follow_the_chosen_loss(open_page: Open) -> None:
    page = open_page(document())
    first = page.locator("#heat .text .token").nth(1)
    colours = []
    for label in ("excess loss", "model loss", "reference loss"):
        page.get_by_label(label).check()
        colours.append(
            (first.get_attribute("class"), first.evaluate("(span) => getComputedStyle(span).backgroundColor"))
        )
    assert "excess-" in colours[0][0]
    assert "heat-" in colours[1][0]
    assert len({colour for _, colour in colours}) > 1


def test_pointer_and_arrow_keys_read_the_values_of_a_token(open_page: Open) -> None:
    page = open_page(document())
    losses, ref_loss, _ = losses_of(rows_of_text())

    def reads(place: int) -> None:
        text = page.locator("#heat .reading").inner_text().replace("−", "-")
        loss, reference = losses[-1, 0, place], ref_loss[0, place]
        assert f"{loss:.3f}" in text
        assert f"{reference:.3f}" in text
        assert f"{loss - reference:.3f}" in text

    page.locator("#heat .text .token").nth(6).hover()
    reads(5)
    page.locator("#heat .text").focus()
    page.keyboard.press("ArrowRight")
    reads(6)
    page.keyboard.press("Home")
    reads(0)
    page.keyboard.press("End")
    assert page.locator("#heat .token[aria-current]").count() == 1


def test_the_axis_and_the_counted_reference_move_a_curve(open_page: Open) -> None:
    page = open_page(document())
    page.locator("#curves .runs").get_by_label("clm", exact=True).uncheck()
    plot = page.locator(PLOT).first

    def first_stop() -> str:
        plot.focus()
        page.keyboard.press("Home")
        return str(plot.get_attribute("aria-valuetext")).split(":")[0]

    assert page.locator("#counted").is_disabled()
    assert "81.9k" in first_stop()
    page.get_by_label("time", exact=True).check()
    assert "12.6\u00a0s" in first_stop()
    shape = "(plot) => [...plot.querySelectorAll('path.line')].map((path) => path.getAttribute('d')).join()"
    before = plot.evaluate(shape)
    page.locator("#counted").check()
    assert "1\u00a0min 17\u00a0s" in first_stop()
    # All lines move by the same time, so the shape stays, and the labels below it change.
    assert plot.evaluate(shape) == before
    page.locator("#curves .runs").get_by_label("clm", exact=True).check()
    assert plot.evaluate(shape) != before
    page.get_by_label("GPU-hours", exact=True).check()
    assert page.locator("#counted").is_disabled()


@pytest.mark.parametrize(
    ("axis", "first"),
    [("tokens selected", "at 32.8k tokens"), ("FLOPs", "at 123 TFLOP"), ("GPU-hours", "at 0.0035 GPU-h")],
)
def test_each_axis_has_the_amounts_of_the_runs(open_page: Open, axis: str, first: str) -> None:
    page = open_page(document())
    page.locator("#curves .runs").get_by_label("clm", exact=True).uncheck()
    page.get_by_label(axis, exact=True).check()
    plot = page.locator(PLOT).first
    plot.focus()
    page.keyboard.press("Home")
    assert str(plot.get_attribute("aria-valuetext")).split(":")[0] == first


def test_the_domains_and_the_classes_of_tokens_have_their_numbers(open_page: Open) -> None:
    page = open_page(document())
    domains = page.locator("#domains tbody tr")
    assert domains.count() == 6
    assert domains.nth(2).locator("th, td").all_inner_texts() == [
        "prose", "slm-0.6", "205k", "1.9", "72%", "8.900", "4.030"
    ]  # fmt: skip
    classes = page.locator("#dynamics table").first.locator("tbody tr")
    shares = {row.locator("th").inner_text(): row.locator("td").all_inner_texts()[-2:] for row in classes.all()}
    assert shares == {"H→L": ["41%", "70%"], "L→L": ["30%", "40%"], "H→H": ["19%", "80%"], "L→H": ["10%", "60%"]}


def test_the_tokens_kept_most_and_least_are_counted_over_all_rows(open_page: Open) -> None:
    page = open_page(document())
    _, _, valid = losses_of(rows_of_text())
    kept, total = Counter[str](), Counter[str]()
    for row, pieces in enumerate(rows_of_text()):
        for place, piece in enumerate(pieces):
            total[piece] += int(valid[row, place])
            kept[piece] += int(expected(CHECKPOINTS - 1, str(KEEP_RATIO))[row, place])
    shares = {(kept[piece] / count, count) for piece, count in total.items() if count >= 3}
    for caption, order in (
        ("Kept most", lambda found: (-found[0], -found[1])),
        ("Kept least", lambda found: (found[0], -found[1])),
    ):
        first = page.locator("#heat table").filter(has_text=caption).locator("tbody tr").first.locator("td")
        _, kept_times, times = first.all_inner_texts()
        share, count = min(shares, key=order)
        assert (int(kept_times), int(times)) == (round(share * count), count)


def test_a_run_whose_reference_is_of_unknown_cost_is_left_out_by_name(open_page: Open) -> None:
    changed = document()
    changed["runs"][1]["before"]["seconds"] = None
    page = open_page(changed)
    page.get_by_label("time", exact=True).check()
    page.locator("#counted").check()
    figure = page.locator("#curves .chart").first
    assert "slm-0.6" in figure.locator(".note").inner_text()
    assert "slm-0.6" not in figure.locator(".legend").inner_text()


def test_pointer_and_arrow_keys_read_the_values_of_a_chart(open_page: Open) -> None:
    page = open_page(document())
    chart = page.locator("#curves .chart").first
    at_the_end = chart.locator(".legend").inner_text()
    chart.locator(".plot").hover(position={"x": 80, "y": 100})
    assert chart.locator(".legend").inner_text() != at_the_end
    assert chart.locator(".cursor line").count() == 1
    chart.locator(".plot").focus()
    page.keyboard.press("End")
    assert chart.locator(".legend").inner_text() == at_the_end
    page.keyboard.press("ArrowLeft")
    assert chart.locator(".plot").get_attribute("aria-valuenow") == "8"


def test_a_table_tells_each_chart_and_row_without_its_sight(open_page: Open) -> None:
    page = open_page(document())
    chart = page.locator("#curves .chart").first
    chart.locator("summary").click()
    assert "4.314" in chart.locator("table").inner_text()
    page.locator("#heat summary").click()
    rows = page.locator("#heat details tbody tr")
    # The table is made after the click.
    rows.nth(ROW_TARGETS - 1).wait_for(state="attached")
    assert rows.count() == ROW_TARGETS
    named = "(nodes) => nodes.every((node) => node.querySelector('caption, figcaption'))"
    assert page.locator("table, figure").evaluate_all(named)
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("input, select").evaluate_all("(nodes) => nodes.every((node) => node.labels.length)")


def test_the_runs_stand_below_each_loss_that_they_reach(open_page: Open) -> None:
    (targets,) = document()["targets"]
    page = open_page(document())
    bodies = page.locator("#targets tbody")
    assert bodies.count() == len(targets["rows"])
    for body, row in zip(bodies.all(), targets["rows"], strict=True):
        heads = body.locator("th").all_inner_texts()
        assert f"{row['loss']:.3f}" in heads[0]
        assert heads[1:] == [reached["run"] for reached in row["reached"]]


def test_a_sweep_has_a_point_for_each_run(open_page: Open) -> None:
    page = open_page(document())
    assert page.locator("#sweep path.marker").count() >= 3
    assert "4.040" in page.locator("#sweep table").inner_text()


@pytest.mark.parametrize(("value", "shown"), [("a", "a"), (None, "null"), (True, "true")])
def test_a_sweep_of_words_is_drawn_in_their_order(open_page: Open, value: object, shown: str) -> None:
    changed = document()
    changed["sweep"]["metrics"][0]["points"][0]["value"] = value
    page = open_page(changed)
    assert shown in page.locator("#sweep .plot .tick").all_text_contents()


def test_parts_that_a_document_lacks_are_left_out(open_page: Open) -> None:
    bare: Document = {
        **document(),
        "runs": [document()["runs"][3]],
        "targets": [],
        "sweep": None,
        "dynamics": [],
        "heat": [],
        "costs": {"rows": [], "break_even": []},
    }
    page = open_page(bare)
    assert [part.get_attribute("id") for part in page.locator("section").all()] == ["summary", "heat", "runs"]
    assert "slm-0.8" in page.locator("#summary .notes").inner_text()


@pytest.mark.parametrize(
    ("scheme", "media", "width"), [("light", "screen", 360), ("dark", "screen", 1280), ("dark", "print", 700)]
)
def test_nothing_is_wider_than_the_page(open_page: Open, scheme: str, media: str, width: int) -> None:
    page = open_page(document(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.emulate_media(media=media)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 128) == (scheme == "dark" and media == "screen")
    assert page.locator("#curves .controls").is_visible() == (media == "screen")
