"""The first screen of a report's page: what the best run bought, and what is counted."""

import numpy as np

from tests.system.report.conftest import Open
from tests.system.report.document import document, packed


def test_the_first_screen_says_what_the_best_run_bought(open_page: Open) -> None:
    page = open_page(document())
    numbers = page.locator("#summary dt").all_text_contents()
    assert [number.split()[0] for number in numbers] == ["0.270", "0.270", "64%", "64%", "2"]
    assert [number.split()[-1] for number in numbers[:2]] == ["lower", "higher"]
    assert "115%" in page.locator("#summary").inner_text()
    assert page.locator("#summary dl").bounding_box()["y"] < 300


def test_the_first_screen_says_where_the_best_run_lost_most(open_page: Open) -> None:
    changed = document()
    for run, worse in zip(changed["runs"], (0.0, 1.5, 0.0), strict=False):
        last = packed(np.full(10, 3.0 + worse))
        run["validations"].append({**run["validations"][1], "place": "code", "loss": last})
    page = open_page(changed)
    assert page.locator("#summary dt").nth(1).inner_text().startswith("1.500 ")
    assert " code " in page.locator("#summary dd").nth(1).inner_text()
    changed["runs"][1]["validations"] = changed["runs"][1]["validations"][:1]
    assert open_page(changed).locator("#summary dt").count() == 4


def test_the_first_screen_compares_an_unfinished_run_at_as_many_tokens(open_page: Open) -> None:
    changed = document()
    clm, slm = changed["runs"][:2]
    changed["runs"] = [clm, {**slm, "state": "unfinished"}]
    halves = {"tokens": packed(np.array([0.0, 150_000.0]), "f8"), "loss": packed(np.array([9.0, 5.5]))}
    changed["runs"][1]["validations"] = [{**slm["validations"][0], **halves}]
    whole = {"tokens": packed(np.array([0.0, 100_000.0, 200_000.0, 800_000.0]), "f8")}
    clm["validations"] = [{**clm["validations"][0], **whole, "loss": packed(np.array([9.0, 7.0, 5.0, 4.0]))}]
    never = changed["targets"][0]["rows"][1]["reached"][1]
    never.update(dict.fromkeys(set(never) - {"run"}))
    summary = open_page(changed).locator("#summary")
    assert summary.locator("dt").nth(0).inner_text() == "0.500 nats lower"
    assert "5.500 against 6.000" in summary.locator("dd").nth(0).inner_text()
    assert "yet" in summary.locator("dt").nth(1).inner_text()


def test_the_first_screen_compares_at_equal_tokens_if_it_can(open_page: Open) -> None:
    changed = document()
    for validation in changed["runs"][1]["validations"]:
        validation["tokens"] = packed(np.arange(1, 11) * 163_840.0, "f8")
    assert "slm-0.4" in open_page(changed).locator("#summary h2").inner_text()
    changed["runs"].pop(2)
    page = open_page(changed)
    assert "slm-0.6" in page.locator("#summary h2").inner_text()
    assert "1.64M" in page.locator("#summary").inner_text()


def test_the_first_screen_is_of_a_selective_run(open_page: Open) -> None:
    changed = document()
    # Such as the run of the reference, whose loss on its own domain is lower than that of any other.
    changed["runs"][1]["objective"] = "clm"
    assert "slm-0.6" not in open_page(changed).locator("#summary h2").inner_text()


def test_the_first_screen_of_a_sweep_without_a_baseline_names_the_best_value(open_page: Open) -> None:
    page = open_page({**document(), "targets": []})
    assert page.locator("#summary dt").all_text_contents() == ["4.040 nats"]
    assert "slm-0.6" in page.locator("#summary dd").inner_text()


def test_the_page_says_what_flops_and_a_reported_reference_count(open_page: Open) -> None:
    changed = document()
    page = open_page(changed)
    said = page.locator("#curves > .note")
    assert not said.is_visible()
    page.get_by_label("FLOPs", exact=True).check()
    assert said.is_visible()
    assert said.inner_text() in page.locator("#costs").inner_text()
    changed["costs"]["rows"][-1] |= {"what": "training of the reference", "shared_by": ["slm-0.4"]}
    told = open_page(changed)
    assert told.locator("#costs > p").count() == page.locator("#costs > p").count() + 1
    assert "slm-0.4" in told.locator("#costs tbody tr").last.inner_text()


def test_an_unknown_break_even_is_not_told_as_none(open_page: Open) -> None:
    told = []
    for is_known in (True, False):
        changed = document()
        changed["costs"]["break_even"][0] |= {"runs": None, "is_known": is_known}
        told.append(open_page(changed).locator("#summary dt").last.inner_text())
    assert told[0] != told[1]
