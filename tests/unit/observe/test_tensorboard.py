"""What TensorBoard shows of a run: tags, layout, texts, histograms."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from megaslm.observe.charts import LAYOUT
from megaslm.observe.records import (
    PaceRecord,
    ProbeRecord,
    ReportRecord,
    SaveRecord,
    SkippedRecord,
    TaskLossRecord,
    TaskRecord,
)
from megaslm.observe.run_description import RunDescription
from megaslm.observe.tensorboard import AGAINST_TOKENS
from megaslm.training.run_folder import RunFolder
from tests.boards import SKIPPED, board, skipped, step, validation
from tests.events import points_in


def test_a_step_tells_of_its_selection_where_there_was_one(tmp_path: Path) -> None:
    selective = replace(step(1), threshold=0.25, excess_quantiles={"p50": 0.5}, domain_ratio={"a": 0.7, "b": 0.4})
    unmeasured = replace(step(2), all_loss=None, domain_tokens={"web/a": 48}, domain_passes={"web/a": 1.5})
    board(tmp_path, first_step=0).write([selective, unmeasured])
    tags = {tag: [number for number, _ in points] for tag, points in points_in(tmp_path).items()}
    assert tags["selection/threshold"] == tags["selection/excess_p50"] == [1]
    assert tags["selection_ratio/a"] == tags["selection_ratio/b"] == [1]
    assert tags["loss/all"] == [1]
    assert tags["train/selected_ratio"] == [1, 2]
    assert tags["tokens_of_domain/web/a"] == tags["passes_of_domain/web/a"] == [2]


REPORT = ReportRecord(
    step=2,
    tokens=20,
    steps=2,
    selected_tokens=12,
    keep_ratio=0.6,
    position_ratio=[0.5, None, 0.7],
    excess_counts=[0] * 10 + [3, 0, 4] + [0] * 19,
    phase_seconds={"data_wait": 0.25, "forward": 0.5},
    mfu=0.4,
    mfu_of_documents=0.3,
    device_memory_bytes=1 << 31,
    host_memory_bytes=1 << 30,
    begun_at=1.8e9,
    seconds_in_steps=30.0,
    effective_time_ratio=0.75,
)
EVERYTHING = [
    replace(
        step(1),
        threshold=0.25,
        excess_quantiles={"p05": -1.0, "p25": 0.0, "p50": 0.5, "p75": 1.0, "p95": 2.0},
        domain_ratio={"web": 0.7, "code": 0.4},
        domain_tokens={"web": 48, "code": 12},
        domain_passes={"web": 1.5, "code": 0.5},
        mean_weight=0.5,
    ),
    skipped(2, 1),
    REPORT,
    PaceRecord(2, 0, 1.0),
    validation(2),
    TaskRecord(2, 20, "gsm8k", 0.25, 8, 1),
    TaskLossRecord(2, 20, "gsm8k", 8, 1.5, 0.5, 0.25, 0.5),
    ProbeRecord(
        2, 20, 0.125, [{"domain": "web", "row": 3, "stretches": ["if a*b < 2:\n", "  return", " `x` ", "now"]}]
    ),
    SaveRecord(3, 2, 0.5, 12.0),
]
PICTURES = ("selection/excess", "selected_text/1", "config")
ABOUT = RunDescription("seed: 17\ntrain:\n  lr: 0.001\n", {"seed": 17, "train.lr": 0.001, "slm.criterion": "excess"})


def described(folder: Path) -> EventMultiplexer:
    board(folder, first_step=0, description=ABOUT).write(EVERYTHING)
    runs = EventMultiplexer().AddRun(str(folder), "run").AddRun(str(folder / AGAINST_TOKENS), "tokens")
    return runs.Reload()


def text_in(events: EventMultiplexer, tag: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("run", tag)]


def test_the_tags_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Dashboards and scripts name them. A tag that is added or renamed changes the list in the file."""
    events = described(tmp_path)
    found = sorted(
        f"{plugin} {run} {tag}"
        for run in ("run", "tokens")
        for plugin in ("scalars", "histograms", "text", "custom_scalars", "hparams")
        for tag in events.PluginRunToTagToContent(plugin).get(run, {})
    )
    assert "\n".join(found) + "\n" == (Path(__file__).parent / "tags.txt").read_text(encoding="utf-8")


def layout_in(events: EventMultiplexer) -> Layout:
    """The newest one, which viewers show."""
    return Layout.FromString(events.Tensors("run", CONFIG_SUMMARY_TAG)[-1].tensor_proto.string_val[0])


def charts_in(folder: Path) -> list[str]:
    layout = layout_in(EventMultiplexer().AddRun(str(folder), "run").Reload())
    return [chart.title for category in layout.category for chart in category.chart]


def test_a_chart_is_in_the_layout_once_it_has_a_number(tmp_path: Path) -> None:
    begun = board(tmp_path, first_step=0)
    begun.write([step(1)])
    first = charts_in(tmp_path)
    assert 0 < len(first) < 12
    begun.write([step(2)])
    assert len(EventMultiplexer().AddRun(str(tmp_path), "run").Reload().Tensors("run", CONFIG_SUMMARY_TAG)) == 1
    begun.write([replace(EVERYTHING[0], step=3, tokens=30), replace(REPORT, step=3), PaceRecord(3, 0, 1.0)])
    assert len(charts_in(tmp_path)) > len(first) + 3
    # What the first attempt has told is still shown; the pace is told anew.
    resumed = board(tmp_path, first_step=3)
    resumed.write([])
    assert charts_in(tmp_path) == first
    resumed.write([PaceRecord(3, 0, 1.0)])
    assert len(charts_in(tmp_path)) == len(first) + 1


def test_a_run_that_trains_on_every_target_has_no_charts_of_its_selection(tmp_path: Path) -> None:
    """Its ratios are 1 throughout."""
    causal = replace(REPORT, keep_ratio=None)
    board(tmp_path / "clm", first_step=0).write([replace(EVERYTHING[0], threshold=None), causal])
    board(tmp_path / "slm", first_step=0).write([EVERYTHING[0], REPORT])
    clm, slm = charts_in(tmp_path / "clm"), charts_in(tmp_path / "slm")
    assert len(clm) > 3
    assert [chart for chart in slm if chart not in clm] == [chart.title for chart in LAYOUT["Selection"][:-1]]


def test_every_line_of_the_layout_has_a_tag(tmp_path: Path) -> None:
    events = described(tmp_path)
    layout = layout_in(events)
    tags = [tag for run in events.PluginRunToTagToContent("scalars").values() for tag in run]
    charts = [chart for category in layout.category for chart in category.chart]
    patterns = [pattern for chart in charts for pattern in chart.multiline.tag]
    assert len(patterns) > 20
    assert [pattern for pattern in patterns if not any(re.match(pattern, tag) for tag in tags)] == []
    exact = [tag for chart in charts for one in chart.margin.series for tag in (one.value, one.lower, one.upper)]
    assert len(exact) == 6
    assert set(exact) <= set(tags)


def test_losses_are_shown_against_tokens_too(tmp_path: Path) -> None:
    board(tmp_path, first_step=0).write([step(1), step(2), validation(2), step(3)])
    board(tmp_path, first_step=3).write([step(3, 9.0)])
    shown = points_in(tmp_path / AGAINST_TOKENS)
    assert shown["loss_vs_tokens/selected"] == [(10, 1.5), (20, 1.5), (30, 9.0)]
    assert shown["loss_validation_vs_tokens/held/a"] == [(20, 2.0)]


def test_the_loss_of_unselected_targets_is_what_is_left_of_the_mean(tmp_path: Path) -> None:
    board(tmp_path, first_step=0).write([step(1), replace(step(2), selected_ratio=1.0, loss=2.5)])
    ((number, loss),) = points_in(tmp_path)["loss/unselected"]
    assert number == 1
    assert 0.6 * 1.5 + 0.4 * loss == pytest.approx(2.5)


def test_the_histogram_has_the_bins_that_hold_targets(tmp_path: Path) -> None:
    (stored,) = described(tmp_path).Tensors("run", "selection/excess")
    assert make_ndarray(stored.tensor_proto).tolist() == [[-1.5, -1.25, 3.0], [-1.25, -1.0, 0.0], [-1.0, -0.75, 4.0]]


def test_the_configuration_is_text_and_settings_to_compare_runs_by(tmp_path: Path) -> None:
    events = described(tmp_path)
    assert text_in(events, "config") == [(0, "```yaml\nseed: 17\ntrain:\n  lr: 0.001\n\n```")]
    content = HParamsPluginData.FromString(events.PluginRunToTagToContent("hparams")["run"][SESSION_START_INFO_TAG])
    settings = content.session_start_info.hparams
    assert settings["train.lr"].number_value == 0.001
    assert settings["slm.criterion"].string_value == "excess"


def test_runs_of_equal_settings_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    def trial(run: str) -> str:
        events = described(RunFolder(tmp_path / run).tensorboard)
        content = HParamsPluginData.FromString(events.PluginRunToTagToContent("hparams")["run"][SESSION_START_INFO_TAG])
        return content.session_start_info.group_name

    assert (trial("runs/one"), trial("runs/two")) == ("runs/one", "runs/two")


def test_a_sample_shows_what_is_kept_in_bold(tmp_path: Path) -> None:
    ((number, markdown),) = text_in(described(tmp_path), "selected_text/1")
    assert number == 2
    assert markdown_to_safe_html(markdown) == (
        "<p>web, row 3:</p>\n<p>if a*b &lt; 2:↵  <strong>return</strong> `x` <strong>now</strong></p>"
    )


@pytest.mark.parametrize("first_step", [0, 2])
def test_texts_and_histograms_are_taken_back_too(tmp_path: Path, first_step: int) -> None:
    before = described(tmp_path)
    resumed = board(tmp_path, first_step=first_step, description=ABOUT)
    resumed.write([])
    for events in (before.Reload(), EventMultiplexer().AddRun(str(tmp_path), "run").Reload()):
        known = events.Runs()["run"]["tensors"]
        assert not any(events.Tensors("run", tag) for tag in ("selected_text/1", "selection/excess") if tag in known)
        assert [number for number, _ in text_in(events, "config")] == ([0] if first_step == 0 else [0, first_step])


def test_the_losses_are_what_tensorboard_opens_with(tmp_path: Path) -> None:
    told = [record for record in EVERYTHING if not isinstance(record, SkippedRecord | TaskRecord | TaskLossRecord)]
    board(tmp_path, first_step=0).write(told)
    shown = [*points_in(tmp_path), *points_in(tmp_path / AGAINST_TOKENS)]
    groups = sorted({tag.partition("/")[0] for tag in shown})
    assert groups[:2] == ["loss", "loss_validation"]


def test_every_tag_has_a_description(tmp_path: Path) -> None:
    board(tmp_path, first_step=0, description=ABOUT).write(EVERYTHING)
    for folder in (tmp_path, tmp_path / AGAINST_TOKENS):
        events = EventAccumulator(str(folder)).Reload()
        described = {tag: events.SummaryMetadata(tag).summary_description for tag in points_in(folder)}
        assert [tag for tag, meaning in described.items() if not meaning] == []
    assert all(EventAccumulator(str(tmp_path)).Reload().SummaryMetadata(tag).summary_description for tag in PICTURES)


def test_a_set_of_the_name_of_its_domain_is_named_once(tmp_path: Path) -> None:
    board(tmp_path, first_step=0).write([replace(validation(1), name="a"), replace(validation(1), domain="b")])
    assert set(points_in(tmp_path)) == {
        f"{what}/{of}" for what in ("loss_validation", "perplexity") for of in ("a", "held/b")
    }


def test_a_skipped_step_counts_those_before_it(tmp_path: Path) -> None:
    board(tmp_path, first_step=0).write([step(1), skipped(2, 1), skipped(4, 2)])
    assert points_in(tmp_path)[SKIPPED] == [(2, 1.0), (4, 2.0)]


def test_numbers_beyond_float32_are_infinite(tmp_path: Path) -> None:
    board(tmp_path, first_step=0).write([replace(validation(1), perplexity=math.exp(700.0))])
    assert points_in(tmp_path)["perplexity/held/a"] == [(1, math.inf)]
