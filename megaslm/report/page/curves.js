// The curves of the runs: validation, tasks, and what every step reported, over one axis that the reader chooses.

const STEPS = [
  ["loss", "Training loss of the selected tokens (nats)", nats],
  ["all_loss", "Training loss of all tokens (nats)", nats],
  ["selected_ratio", "Share of tokens selected", percent],
  ["threshold", "Threshold of the selection (nats)", nats],
  ["learning_rate", "Learning rate", plain],
  ["gradient_norm", "Gradient norm", plain],
  ["tokens_per_second", "Tokens per second", (number) => inUnits(number, COUNTS)],
];
const STARTS = [[0, "all"], [0.1, "without the first tenth"], [0.5, "the second half"]];
const COSTLY = ["flops", "seconds", "gpu_hours"];

/** All curves of a document, and the controls that they share. */
class Curves {
  constructor(runs) {
    this.runs = runs;
    this.axes = Object.keys(QUANTITIES).filter((axis) => this.allSeries().some((series) => series[axis]));
    this.view = { axis: this.axes[0] ?? "tokens", counted: false, from: 0, hidden: new Set() };
    this.charts = [];
    this.counted = element("p", { class: "note" }, COUNTED_FLOPS);
  }

  allSeries() {
    return this.runs.flatMap((run) => [run.series, ...(run.validations ?? []), ...(run.tasks ?? [])]).filter(Boolean);
  }

  /** The section with the controls, or null where no run has a curve. */
  section() {
    const validations = this.group((run) => run.validations, (found) => found.place,
      (place) => `Validation loss on ${place} (nats)`, "loss", nats, 300);
    const tasks = this.group((run) => run.tasks, (found) => `${found.name}, ${found.measure}`,
      (name) => name, "value", plain);
    const steps = STEPS.flatMap(([key, title, format]) => {
      const sources = this.runs.map((run) => [run.series?.[key]?.shape[0] ? run.series : null]);
      return sources.some(([series]) => series) ? [this.chart(title, format, key, sources, false, 220)] : [];
    });
    if (!this.charts.length) return null;
    this.draw();
    return section("curves", "Curves", this.controls(), this.counted, element("div", { class: "charts" }, validations, tasks),
      steps.length ? element("h3", {}, "What every step reported") : null, element("div", { class: "charts" }, steps));
  }

  /** One chart for each name that the runs' curves have. */
  group(curvesOf, nameOf, titleOf, key, format, height = 240) {
    const found = this.runs.map((run) => curvesOf(run) ?? []);
    const names = [...new Set(found.flat().map(nameOf))];
    const charts = names.map((name) => this.chart(titleOf(name), format, key,
      found.map((curves) => curves.filter((curve) => nameOf(curve) === name)), true, height));
    return charts;
  }

  chart(title, format, key, sources, marked, height) {
    const chart = new LineChart(title, format, height);
    const curves = sources.map((found) => found.filter(Boolean).map((source) => ({
      y: unpack(source[key]),
      axes: Object.fromEntries(this.axes.map((axis) => [axis, unpack(source[axis])])),
    })));
    this.charts.push({ chart, curves, marked });
    return chart.figure;
  }

  draw() {
    const { axis } = this.view;
    this.counted.hidden = axis !== "flops";
    for (const { chart, curves, marked } of this.charts) {
      const lines = [];
      const without = [];
      curves.forEach((found, number) => found.forEach((curve) => {
        const run = this.runs[number];
        if (this.view.hidden.has(number)) return;
        if (!curve.y) return;
        const x = this.places(curve.axes[axis], run);
        if (x) lines.push({ name: run.name, style: number, x, y: curve.y, marked });
        else without.push(run.name);
      }));
      const note = without.length ? `Left out, ${QUANTITIES[axis].name} not known: ${without.join(", ")}.` : "";
      chart.show({ axis: QUANTITIES[axis], lines: this.latter(lines), note });
    }
  }

  /** The places on the axis; counted, they are behind the reference's training and the scoring. Null if not known. */
  places(numbers, run) {
    const { axis, counted } = this.view;
    const before = counted && COSTLY.includes(axis) ? run.before?.[axis] ?? null : 0;
    return numbers && before !== null ? numbers.map((number) => number + before) : null;
  }

  /** The lines without their beginnings, if the reader leaves these out. */
  latter(lines) {
    if (!this.view.from) return lines;
    const end = extent(lines.flatMap((line) => [...line.x].filter(isNumber)))[1];
    const start = this.view.from * end;
    return lines.map((line) => ({ ...line, y: line.y.map((y, place) => (line.x[place] < start ? NaN : y)) }));
  }

  controls() {
    const change = (name, value) => { this.view[name] = value; this.draw(); };
    const counting = tick("Count the reference’s training and the scoring", false,
      (counted) => change("counted", counted), { id: "counted" });
    const box = counting.querySelector("input");
    const enable = () => {
      const { axis } = this.view;
      box.disabled = !COSTLY.includes(axis) || !this.runs.some((run) => run.before?.[axis]);
    };
    enable();
    const names = this.axes.map((axis) => [axis, QUANTITIES[axis].name]);
    const runs = this.runs.map((run, number) => tick([swatch(number), element("span", {}, run.name)], true, (shown) => {
      if (shown) this.view.hidden.delete(number); else this.view.hidden.add(number);
      this.draw();
    }));
    return element("div", { class: "controls" },
      radios("axis", "Against", names, this.view.axis, (axis) => { change("axis", axis); enable(); }),
      counting,
      radios("from", "Show", STARTS, 0, (from) => change("from", from)),
      runs.length > 1 ? element("fieldset", { class: "runs" }, element("legend", {}, "Runs"), runs) : null);
  }
}
