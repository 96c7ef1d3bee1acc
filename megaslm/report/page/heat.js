// The heat map: real text of probe rows, coloured by loss, with the kept targets underlined.

const HEAT_TITLE = "What is selected, token by token";
const LEAST_OCCURRENCES = 3;
const SHOWN_TOKENS = 12;
const JOINED = "part of the character before";

function heatSection({ runs, heat }) {
  if (!heat || !heat.length) {
    return section("heat", HEAT_TITLE, element("p", {},
      "No run has measured probe rows: add `probe` to its configuration, or run `megaslm dynamics` on it."));
  }
  const place = element("div");
  const show = (index) => place.replaceChildren(...new HeatMap(heat[index]).nodes);
  // The run that selects is of more interest than one that keeps everything.
  const first = Math.max(0, heat.findIndex((found) => found.keep_ratio !== null));
  show(first);
  if (heat.length === 1) return section("heat", HEAT_TITLE, element("p", {}, named(runs, heat[0].run)), place);
  const choice = selection("Run", heat.map(({ run }, index) => [index, run]), (index) => show(Number(index)));
  choice.querySelector("select").value = first;
  return section("heat", HEAT_TITLE, choice, place);
}

/** The heat map of one run. `nodes`: its parts, for the page. */
class HeatMap {
  constructor(heat) {
    this.heat = heat;
    this.data = new HeatData(heat);
    const colourings = Object.keys(COLOURINGS).filter((name) => name === "loss" || this.data.reference);
    this.last = heat.checkpoints.length - 1;
    this.view = { row: 0, checkpoint: this.last, ratio: heat.keep_ratio ?? 1, colouring: colourings[0] };
    this.scales = Object.fromEntries(colourings.map((name) => [name, new HeatScale(this.data, name)]));
    this.scale = element("div");
    this.count = element("p", { class: "count", role: "status" });
    this.place = element("div");
    this.reading = element("div", { class: "reading", role: "status" });
    this.shares = element("div", { class: "charts" });
    this.numbers = details("Numbers of this row", () => this.table());
    this.nodes = [
      heat.note ? element("p", { class: "note" }, heat.note) : null,
      this.controls(colourings), this.scale, this.count, element("div", {}, this.place, this.reading), this.numbers,
      element("h3", {}, "Tokens kept most, and least"), this.shares,
    ].filter(Boolean);
    this.showRow(0);
  }

  controls(colourings) {
    const { rows, domains, keep_ratio: own } = this.heat;
    const names = rows.map(({ domain, row }, index) =>
      [index, `${index + 1} of ${rows.length}: ${domains[domain]}, row ${row}`]);
    const choice = selection("Row", names, (row) => this.showRow(Number(row)));
    const step = (by) => {
      const button = element("button", { type: "button" }, by < 0 ? "Previous row" : "Next row");
      button.addEventListener("click", () => this.showRow((this.view.row + by + rows.length) % rows.length));
      return button;
    };
    this.rowChoice = choice.querySelector("select");
    this.checkpoint = slider("checkpoint", "Checkpoint", { min: 0, max: this.last }, this.last,
      (checkpoint) => this.change({ checkpoint }));
    this.ratio = slider("ratio", "Kept share k (%)", { min: 0, max: 100, step: 0.5 }, 100 * this.view.ratio,
      (share) => this.change({ ratio: share / 100 }));
    const back = element("button", { type: "button", id: "own-ratio" }, `The run’s own k: ${percent(own ?? 1)}`);
    back.addEventListener("click", () => {
      this.ratio.input.value = 100 * (own ?? 1);
      this.change({ ratio: own ?? 1 });
    });
    const fixed = element("p", { class: "note" }, `The run selects by ${this.heat.criterion}, which this page cannot ` +
      "rank. The underlined tokens are those that the run keeps.");
    return element("div", { class: "controls" },
      element("div", { class: "rows" }, choice, step(-1), step(1)),
      colourings.length > 1 ? radios("colouring", "Colour by", colourings.map((name) => [name, COLOURINGS[name].name]),
        this.view.colouring, (colouring) => this.change({ colouring })) : null,
      this.last > 0 ? this.checkpoint.node : null,
      this.data.canRank ? [this.ratio.node, back] : fixed);
  }

  showRow(row) {
    this.view.row = row;
    this.rowChoice.value = row;
    this.text = new HeatText(this.heat.rows[row], (place) => this.read(place));
    this.place.replaceChildren(this.text.node);
    this.change({});
  }

  change(view) {
    Object.assign(this.view, view);
    const { checkpoint, ratio, row, colouring } = this.view;
    const { data } = this;
    const start = row * data.length;
    this.kept = data.kept(checkpoint, ratio);
    const scale = this.scales[colouring];
    this.text.paint((place) => ({
      colour: scale.classOf(COLOURINGS[colouring].of(data, checkpoint, start + place)),
      valid: data.valid[start + place] === 1,
      kept: this.kept[start + place] === 1,
    }));
    this.scale.replaceChildren(scale.legend(COLOURINGS[colouring].name));
    const { step, tokens } = this.heat.checkpoints[checkpoint];
    this.checkpoint.output.textContent = `step ${whole(step)}, ${amount(tokens, "tokens")} tokens`;
    this.ratio.output.textContent = percent(ratio);
    this.tell(start);
    this.read(this.text.current);
    this.numbers.refresh();
    this.showShares();
  }

  /** How many targets are kept, and how that compares with the run's own selection. */
  tell(start) {
    const { data, heat, kept } = this;
    const rowEnd = start + data.length;
    const of = (from, end) => `${whole(sum(kept, from, end))} of ${whole(sum(data.valid, from, end))}`;
    const scope = data.rows === 1 ? "" : `, and ${of(0, kept.length)} in the ${data.rows} rows together`;
    const ranking = heat.scope === "sequence" ? "Each row is ranked on its own." : "The rows are ranked together.";
    const own = data.canRank && this.view.ratio === heat.keep_ratio && data.keptByRun[this.view.checkpoint];
    this.count.textContent = `Underlined: ${of(start, rowEnd)} tokens of this row are kept${scope}. ` +
      `${data.canRank ? ranking : ""} ${own ? this.agreement(own) : ""}`;
  }

  agreement(own) {
    const { data, heat, kept } = this;
    const equal = sum(kept.map((value, target) => (value === own[target] ? data.valid[target] : 0)));
    const all = sum(data.valid);
    if (equal === all) return "This is the selection of the run itself.";
    const ranked = heat.probe_rows > data.rows ? `, which ranks all ${heat.probe_rows} probe rows together,` : "";
    return `The selection of the run itself${ranked} agrees on ${whole(equal)} of ${whole(all)} tokens.`;
  }

  /** The values of a target in words; the trend over the checkpoints beside them. */
  read(place) {
    if (place === null) {
      return this.reading.replaceChildren("Point at a token, or press the arrow keys in the text, to read its values.");
    }
    const { data, heat } = this;
    const target = this.view.row * data.length + place;
    const token = element("b", { class: "quoted" }, quoted(heat.rows[this.view.row].pieces[place]) || JOINED);
    if (!data.valid[target]) return this.reading.replaceChildren(token, " is not a target: it counts for nothing.");
    const values = this.valuesOf(target).map(([name, value]) => `${name} ${value}`).join(" · ");
    const losses = data.losses.map((found) => found[target]);
    const rank = data.canRank ? data.ranksAt(this.view.checkpoint)[target] : -1;
    const fate = (this.kept[target] ? "kept" : "dropped") + (rank >= 0 ? `, rank ${whole(rank + 1)}` : "");
    return this.reading.replaceChildren(token, ` ${values} · ${fate}`,
      losses.length > 1 ? trend(losses, heat.checkpoints.map(({ step }) => step)) : "");
  }

  valuesOf(target) {
    const { data } = this;
    const { checkpoint } = this.view;
    const values = [["loss", nats(data.loss(checkpoint, target))]];
    if (data.reference) {
      values.push(["reference", nats(data.reference[target])], ["excess", signedNats(data.excess(checkpoint, target))]);
    }
    if (data.canRank && data.ranksSpans) {
      values.push(["mean of its span", signedNats(data.valuesAt(checkpoint)[target])]);
    }
    return values;
  }

  table() {
    const start = this.view.row * this.data.length;
    const heads = ["token", ...this.valuesOf(start).map(([name]) => `${name} (nats)`), "kept"];
    const rows = this.heat.rows[this.view.row].pieces.map((piece, place) => {
      const target = start + place;
      const token = quoted(piece) || JOINED;
      if (!this.data.valid[target]) return [token];
      return [token, ...this.valuesOf(target).map(([, value]) => value), this.kept[target] ? "yes" : "no"];
    });
    return table("The tokens of this row", heads, rows);
  }

  showShares() {
    const count = sum(this.kept);
    if (count === 0 || count === sum(this.data.valid)) {
      const fate = count ? "All tokens are kept" : "No token is kept";
      return this.shares.replaceChildren(element("p", {}, `${fate}. Another k shows which come first.`));
    }
    const found = this.data.tokenShares(this.kept, LEAST_OCCURRENCES);
    const share = ({ kept, total }) => kept / total;
    const most = found.toSorted((a, b) => share(b) - share(a) || b.total - a.total);
    const least = found.toSorted((a, b) => share(a) - share(b) || b.total - a.total);
    const rows = (tokens) => tokens.slice(0, SHOWN_TOKENS).map((token) =>
      [quoted(token.piece), percent(share(token)), whole(token.kept), whole(token.total)]);
    const heads = ["token", "share kept", "kept", "of"];
    return this.shares.replaceChildren(...(found.length
      ? [table("Kept most", heads, rows(most)), table("Kept least", heads, rows(least))]
      : [element("p", {}, `No token occurs ${LEAST_OCCURRENCES} times in these rows.`)]));
  }
}

/** A slider with its label and its value as text. `range`: `min`, `max`, `step`. `onInput` gets the number. */
function slider(id, label, range, value, onInput) {
  const input = element("input", { type: "range", id, ...range });
  input.value = value;
  const output = element("output", { for: id });
  input.addEventListener("input", () => onInput(Number(input.value)));
  const node = element("div", { class: "slider" }, element("label", { for: id }, label), input, output);
  return { input, output, node };
}
