// The tables: runs, targets, costs, domains, and a sweep of one setting.

/** A run's name beside its line; without one where the run is not among those of the page. */
function named(runs, name) {
  const number = runs.findIndex((run) => run.name === name);
  return element("span", { class: "run" }, number < 0 ? null : swatch(number),
    element("span", { class: name.length > 24 ? null : "short" }, name));
}

function runsSection(runs) {
  const labels = [...new Set(runs.flatMap((run) => (run.facts ?? []).map(([label]) => label)))];
  const value = (run, label) => run.facts?.find(([found]) => found === label)?.[1] ?? null;
  const rows = [
    ["what it is", ...runs.map((run) => run.about)], ["state", ...runs.map((run) => run.state)],
    ...labels.map((label) => [label, ...runs.map((run) => value(run, label))]),
    ["folder", ...runs.map((run) => run.path)],
  ];
  const heads = ["", ...runs.map((run) => named(runs, run.name))];
  return section("runs", "Runs", table("The settings of the runs", heads, rows, heads.map((_, column) => column)));
}

function targetsSection({ runs, targets }) {
  const tables = (targets ?? []).flatMap((found) => targetsTable(runs, found));
  return section("targets", "What it took to reach a loss", tables);
}

function targetsTable(runs, targets) {
  if (!targets.rows.length) return [];
  const counted = (key) => `${key}_with_reference`;
  const keys = [...REACHED, ...COSTLY.map(counted)];
  const heads = ["run", ...REACHED.map((key) => QUANTITIES[key].name),
    ...COSTLY.map((key) => `${QUANTITIES[key].name}, reference and scoring counted`)];
  const rows = targets.rows.flatMap(({ loss, why, reached }) => {
    const base = reached.find((found) => found.run === targets.baseline);
    return [`${nats(loss)} nats: ${why}`, ...reached.map((found) => [named(runs, found.run), ...keys.map((key) => {
      const quantity = key.replace("_with_reference", "");
      if (!isNumber(found[key])) return isNumber(found.tokens) ? NOTHING : key === "tokens" ? "not reached" : NOTHING;
      const share = found !== base && isNumber(base?.[quantity]) ? ` (${percent(found[key] / base[quantity])})` : "";
      return amount(found[key], quantity) + share;
    })])];
  });
  return [
    targets.sentence ? element("p", {}, targets.sentence) : null,
    element("p", {}, "Losses are interpolated between validations. " +
      `In brackets: the share of what ${targets.baseline} took.`),
    table(`Tokens and time to a loss on ${targets.place}`, heads, rows),
  ];
}

const OWN_REFERENCE = "training of the reference";
const REFERENCE_ONCE = "The run that trained the reference is on this page. Its cost is in one row, that of its own training.";

function costsSection({ runs, costs }) {
  if (!costs || !costs.rows.length) return null;
  const heads = ["run", "what", "serves also", ...REACHED.map((key) => QUANTITIES[key].name)];
  const others = (row) => (row.shared_by ?? []).filter((run) => run !== row.run).join(", ") || null;
  const rows = costs.rows.map((row) =>
    [named(runs, row.run), row.what, others(row), ...REACHED.map((key) => amount(row[key], key))]);
  return section("costs", "What it cost",
    (costs.break_even ?? []).map(({ sentence }) => element("p", {}, sentence)),
    costs.rows.some((row) => row.what === OWN_REFERENCE) ? element("p", {}, REFERENCE_ONCE) : null,
    element("p", { class: "note" }, COUNTED_FLOPS),
    table("What each run spent", heads, rows, [1, 2]));
}

function domainsSection(runs) {
  const heads = ["domain", "run", "tokens", "passes", "selected at the end", "first validation loss", "last one"];
  const rows = runs.flatMap((run) => (run.domains ?? []).map((domain) => [
    domain.name, named(runs, run.name), amount(domain.tokens, "tokens"), plain(domain.passes),
    percent(domain.selected_ratio), nats(domain.validation_loss_first), nats(domain.validation_loss_last),
  ]));
  if (!rows.length) return null;
  return section("domains", "Domains", element("p", {}, "The share selected is that of the last tenth of the steps."),
    table("Each domain of each run", heads, rows, [1]));
}

/** The loss over the setting in which the runs differ: the form of figure 9 of the Rho-1 paper. */
function sweepSection({ runs, sweep }) {
  if (!sweep) return null;
  const figures = sweep.metrics.map(({ place, measure, points }) => {
    const title = measure === "loss in nats" ? `Loss on ${place} at the end (nats)` : `${place} at the end, ${measure}`;
    const sorted = points.toSorted((a, b) => (isNumber(a.value) && isNumber(b.value) ? a.value - b.value : 0));
    const numeric = sorted.every(({ value }) => isNumber(value));
    const x = sorted.map(({ value }, at) => (numeric ? value : at));
    const chart = new LineChart(title, nats, 280);
    chart.show({ axis: { name: sweep.key, ticks: sorted.map(({ value }, at) => [x[at], String(value)]) },
      lines: [{ name: place, style: 6, x, y: sorted.map(({ loss }) => loss ?? NaN), marked: true }] });
    const rows = sorted.map(({ run, value, loss }) => [String(value), named(runs, run), nats(loss)]);
    chart.numbers.remove();
    return [chart.figure, table(`${title} for each value of ${sweep.key}`, [sweep.key, "run", measure], rows, [1])];
  });
  return section("sweep", `Sweep of ${sweep.key}`,
    (sweep.left_out ?? []).map((text) => element("p", { class: "note" }, text)),
    element("div", { class: "charts" }, figures));
}
