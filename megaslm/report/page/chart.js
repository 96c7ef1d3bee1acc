// A line chart in SVG, with a legend that reads the values under the pointer or the arrow keys.

const MARGIN = { left: 56, right: 14, top: 10, bottom: 40 };
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "4 2", "13 5"];
const MARKERS = [
  (x, y) => `M${x - 3.5} ${y}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z`,
  (x, y) => `M${x - 3.2} ${y - 3.2}h6.4v6.4h-6.4z`,
  (x, y) => `M${x} ${y - 4.2}l4 7h-8z`,
  (x, y) => `M${x} ${y - 4.5}l4.5 4.5l-4.5 4.5l-4.5-4.5z`,
  (x, y) => `M${x - 4} ${y - 3}h8l-4 7z`,
];
const COLOURS = 7;

/**
 * The attributes of the line of a number. Of seven colours and six dashes, 42 lines are different; up to six differ in
 * each alone.
 */
function lineStyle(number) {
  return { class: `line colour-${number % COLOURS}`, "stroke-dasharray": DASHES[number % DASHES.length] };
}

/** A short piece of a line with its marker, for legends and names. */
function swatch(number) {
  return shape("svg", { class: "swatch", width: 30, height: 12, "aria-hidden": "true" },
    shape("path", { d: "M0 6H30", ...lineStyle(number) }), marker(number, 15, 6));
}

function marker(number, x, y) {
  return shape("path", { class: `marker colour-${number % COLOURS}`, d: MARKERS[number % MARKERS.length](x, y) });
}

/** Round numbers, about `count` of them, within [low, high]. */
function niceTicks(low, high, count) {
  const rough = (high - low) / count || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const total = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(total, 0) }, (_, place) => (first + place) * step);
}

/**
 * A figure of lines. `title`: text, with the unit of y. `formatY`: of values.
 * `show({ axis, lines })` draws: `axis` has `name`, `units`, `suffix` or fixed `ticks` as [x, label] pairs; a line has
 * `name`, `style` (a number), `x`, `y`, and `marked` where every point gets a marker.
 */
class LineChart {
  constructor(title, formatY, height = 240) {
    this.formatY = formatY;
    this.height = height;
    this.plot = element("div", {
      class: "plot", tabindex: 0, role: "slider", "aria-label": `${title}. Arrow keys read the values.`,
      "aria-valuemin": 0, "aria-valuenow": 0, "aria-valuemax": 0,
    });
    this.legend = element("ul", { class: "legend" });
    this.note = element("p", { class: "note", hidden: true });
    this.numbers = details("Numbers", () => this.table());
    this.title = title;
    this.figure = element("figure", { class: "chart" }, element("figcaption", {}, title), this.legend, this.plot,
      this.note, this.numbers);
    this.cursor = null;
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.moveTo(null));
    this.plot.addEventListener("blur", () => this.moveTo(null));
    this.plot.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  show({ axis, lines, note = "" }) {
    this.axis = axis;
    this.lines = lines.map((line) => ({ ...line, places: measuredPlaces(line) })).filter((line) => line.places.length);
    this.note.textContent = note;
    this.note.hidden = !note;
    this.figure.hidden = !this.lines.length && !note;
    this.plot.hidden = !this.lines.length;
    this.legend.replaceChildren(...this.lines.map((line) => {
      line.reading = element("output", {});
      return element("li", {}, swatch(line.style), element("span", { class: "name" }, line.name), line.reading);
    }));
    const stops = new Set(this.lines.flatMap((line) => line.places.map((place) => line.x[place])));
    this.stops = [...stops].sort((a, b) => a - b);
    this.plot.setAttribute("aria-valuemax", Math.max(this.stops.length - 1, 0));
    this.numbers.refresh();
    this.draw();
  }

  draw() {
    const width = Math.floor(this.plot.clientWidth);
    if (!width || !this.lines || !this.lines.length) return;
    const [low, high] = padded(extent(this.lines.flatMap((line) => line.places.map((place) => line.y[place]))));
    const [left, right] = extent(this.stops);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    this.toX = (x) => MARGIN.left + ((x - left) / (right - left || 1)) * inner.width;
    this.toY = (y) => MARGIN.top + ((high - y) / (high - low)) * inner.height;
    this.cursorGroup = shape("g", { class: "cursor" });
    const image = shape("svg", { viewBox: `0 0 ${width} ${this.height}`, "aria-hidden": "true" },
      this.yAxis(low, high, width), this.xAxis(left, right, width),
      this.lines.map((line) => this.path(line)), this.cursorGroup);
    this.plot.replaceChildren(image);
    this.moveTo(this.cursor);
  }

  yAxis(low, high, width) {
    const ticks = niceTicks(low, high, 5);
    const decimals = decimalsOf(ticks);
    return ticks.map((tick) => {
      const y = this.toY(tick);
      return shape("g", {},
        shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
        shape("text", { class: "tick end", x: MARGIN.left - 8, y: y + 4 }, this.formatY(tick, decimals)));
    });
  }

  xAxis(left, right, width) {
    const bottom = this.height - MARGIN.bottom;
    const ticks = this.axis.ticks ?? this.unitTicks(left, right, width);
    return shape("g", {},
      shape("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      ticks.map(([x, label]) => shape("text", { class: "tick middle", x: this.toX(x), y: bottom + 17 }, label)),
      shape("text", { class: "tick end", x: width - MARGIN.right, y: this.height - 5 }, this.axis.name));
  }

  unitTicks(left, right, width) {
    const [size, unit] = unitFor(this.axis.units, Math.max(Math.abs(left), Math.abs(right)));
    const ticks = niceTicks(left / size, right / size, Math.max(2, Math.floor(width / 110)));
    return ticks.map((tick) => [tick * size, tick ? tick.toFixed(decimalsOf(ticks)) + unit : "0"]);
  }

  path(line) {
    const points = Array.from(line.y, (y, place) => (isNumber(y) && isNumber(line.x[place])
      ? `${this.toX(line.x[place]).toFixed(1)} ${this.toY(y).toFixed(1)}` : null));
    const drawn = points.map((point, place) => point && (place && points[place - 1] ? "L" : "M") + point).join("");
    const marked = line.marked || line.places.length === 1 ? line.places : [];
    return shape("g", {}, shape("path", { d: drawn, ...lineStyle(line.style) }),
      marked.map((place) => marker(line.style, this.toX(line.x[place]), this.toY(line.y[place]))));
  }

  point(event) {
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    this.moveTo(this.stops.indexOf(closest(this.stops, (stop) => Math.abs(this.toX(stop) - x))));
  }

  press(event) {
    const last = this.stops.length - 1;
    const at = this.cursor ?? last;
    const moves = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageDown: at - 10, PageUp: at + 10, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.moveTo(Math.min(Math.max(moves[event.key], 0), last));
  }

  /** Reads all lines at a stop, a place in the sorted x values; null reads the end of each line. */
  moveTo(stop) {
    this.cursor = stop !== null && stop < this.stops.length ? stop : null;
    const x = this.cursor === null ? null : this.stops[this.cursor];
    const marks = [];
    for (const line of this.lines) {
      const place = x === null ? line.places.at(-1) : closest(line.places, (at) => Math.abs(line.x[at] - x));
      line.reading.textContent = this.formatY(line.y[place]);
      if (x !== null) marks.push(marker(line.style, this.toX(line.x[place]), this.toY(line.y[place])));
    }
    const where = x === null ? "at the end" : `at ${this.label(x)}`;
    this.plot.setAttribute("aria-valuenow", this.cursor ?? Math.max(this.stops.length - 1, 0));
    this.plot.setAttribute("aria-valuetext",
      `${where}: ${this.lines.map((line) => `${line.name} ${line.reading.textContent}`).join("; ")}`);
    if (x === null) return this.cursorGroup?.replaceChildren();
    const at = this.toX(x);
    const end = at > (MARGIN.left + this.toX(this.stops.at(-1))) / 2;
    this.cursorGroup.replaceChildren(
      shape("line", { x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom }), ...marks,
      shape("text", { class: `tick ${end ? "end" : ""}`, x: at + (end ? -6 : 6), y: MARGIN.top + 10 }, this.label(x)));
  }

  label(x) {
    if (this.axis.ticks) return this.axis.ticks.find(([at]) => at === x)?.[1] ?? plain(x);
    return inUnits(x, this.axis.units) + this.axis.suffix;
  }

  table() {
    const rows = this.lines.flatMap((line) => thinned(line.places, 20).map((place) =>
      [line.name, this.label(line.x[place]), this.formatY(line.y[place])]));
    return table(this.title, ["line", this.axis.name, "value"], rows);
  }
}

const measuredPlaces = ({ x, y }) => [...y.keys()].filter((place) => isNumber(y[place]) && isNumber(x[place]));
const decimalsOf = (ticks) => {
  const step = Math.abs(ticks[1] - ticks[0]) || 1;
  return [0, 1, 2, 3, 4].find((count) => Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) < 1e-6) ?? 5;
};

function extent(numbers) {
  return [numbers.reduce((a, b) => Math.min(a, b), Infinity), numbers.reduce((a, b) => Math.max(a, b), -Infinity)];
}

/** A range with room above and below, and never empty. */
function padded([low, high]) {
  const room = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** The item of least distance. */
function closest(items, distance) {
  return items.reduce((best, item) => (distance(item) < distance(best) ? item : best));
}

/** At most `most` items, evenly spaced, the first and the last among them. */
function thinned(items, most) {
  if (items.length <= most) return items;
  return Array.from({ length: most }, (_, place) => items[Math.round((place * (items.length - 1)) / (most - 1))]);
}
