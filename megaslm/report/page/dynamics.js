// Token dynamics: which tokens a run learned, forgot, knew, and never learned.

const CLASSES = {
  "H→L": "learned: the loss fell",
  "L→L": "known: the loss was low and stayed low",
  "H→H": "hard: the loss was high and stayed high",
  "L→H": "forgotten: the loss rose",
};

function dynamicsSection({ runs, dynamics }) {
  return section("dynamics", "Which tokens were learned", (dynamics ?? []).map((found) => runDynamics(runs, found)));
}

function runDynamics(runs, { run, steps, classes, shares_over_time: over, kept_share: kept }) {
  const names = Object.keys(CLASSES).filter((name) => name in classes);
  const rows = names.map((name) => {
    const { share } = classes[name];
    return [name, CLASSES[name], bar(share), percent(share), percent(kept?.[name])];
  });
  const examples = names.filter((name) => classes[name].examples?.length);
  const heads = ["class", "meaning", "", "share of tokens", "kept by the run"];
  return element("div", { class: "part" },
    element("h3", {}, named(runs, run)),
    table(`Classes of tokens of ${run}`, heads, rows, [1, 2]),
    over ? sharesChart(run, names, over) : null,
    examples.length ? details("Examples", () => element("div", {},
      examples.map((name) => examplesTable(name, steps, classes[name].examples)))) : null);
}

function sharesChart(run, names, over) {
  const chart = new LineChart(`Shares of the classes in ${run}, by the measurements until then`, percent, 220);
  chart.show({ axis: QUANTITIES.tokens, lines: names.map((name, number) =>
    ({ name, style: number, x: over.tokens, y: over.shares[name], marked: true })) });
  return chart.figure;
}

function bar(share) {
  const width = Math.max(0, Math.min(1, share || 0)) * 120;
  return shape("svg", { class: "bar", width: 120, height: 10, "aria-hidden": "true" },
    shape("rect", { class: "bar-ground", width: 120, height: 10 }), shape("rect", { width, height: 10 }));
}

function examplesTable(name, steps, examples) {
  const rows = examples.map(({ before, token, after, losses }) => [
    element("span", { class: "example" }, visible(before), element("mark", {}, quoted(token)), visible(after)),
    element("span", { class: "losses" }, trend(losses, steps), `${nats(losses[0])} → ${nats(losses.at(-1))}`)]);
  return table(`${name}, ${CLASSES[name]}`, ["token in its text", "loss (nats)"], rows, [1]);
}

/** A small line of numbers over their steps; the values stand beside it as text. */
function trend(numbers, steps) {
  const places = [...numbers.keys()].filter((place) => isNumber(numbers[place]));
  const [low, high] = padded(extent(places.map((place) => numbers[place])));
  const [first, last] = extent(places.map((place) => steps[place]));
  const points = places.map((place) => {
    const x = 2 + (76 * (steps[place] - first)) / (last - first || 1);
    const y = 22 - (20 * (numbers[place] - low)) / (high - low);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  return shape("svg", { class: "trend", width: 80, height: 24, "aria-hidden": "true" },
    shape("polyline", { class: "line colour-0", points: points.join(" ") }));
}
