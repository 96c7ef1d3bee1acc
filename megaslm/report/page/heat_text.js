// The text of one probe row: a span per target, coloured by a loss; pointer and arrow keys choose a target.

const LEVELS = 9;
const COLOURINGS = {
  excess: { name: "excess loss", diverging: true, of: (data, checkpoint, target) => data.excess(checkpoint, target) },
  loss: { name: "model loss", diverging: false, of: (data, checkpoint, target) => data.loss(checkpoint, target) },
  reference: { name: "reference loss", diverging: false, of: (data, _, target) => data.reference[target] },
};

/** A scale of colours that stays the same for all checkpoints: from the values of all valid targets, outliers apart. */
class HeatScale {
  constructor(data, colouring) {
    this.diverging = COLOURINGS[colouring].diverging;
    const sizes = [];
    for (let checkpoint = 0; checkpoint < data.losses.length; checkpoint++) {
      for (let target = 0; target < data.valid.length; target++) {
        const value = data.valid[target] ? Math.abs(COLOURINGS[colouring].of(data, checkpoint, target)) : NaN;
        if (Number.isFinite(value)) sizes.push(value);
      }
    }
    const sorted = Float64Array.from(sizes).sort();
    this.most = Math.max(Number((sorted[Math.floor(0.95 * (sorted.length - 1))] ?? 1).toPrecision(1)), 0.1);
  }

  /** The class of a value; none for a value that is not finite. */
  classOf(value) {
    if (!Number.isFinite(value)) return "";
    const share = Math.max(-1, Math.min(1, value / this.most));
    if (!this.diverging) return `heat-${Math.min(LEVELS - 1, Math.floor(Math.max(0, share) * LEVELS))}`;
    return `excess-${Math.round(share * 4)}`;
  }

  /** The colours with the values where they begin. */
  legend(name) {
    const shareOf = (place) => (this.diverging ? (place - 4) / 4 : (place + 0.5) / LEVELS);
    const values = Array.from({ length: LEVELS }, (_, place) => shareOf(place) * this.most);
    return element("p", { class: "scale" }, `${name}: `,
      element("span", {}, `${digits(this.diverging ? -this.most : 0)} `),
      values.map((value) => element("span", { class: `cell ${this.classOf(value)}`, "aria-hidden": "true" })),
      element("span", {}, ` ${digits(this.most)} nats and more`));
  }
}

/** The text of a row. `onChoice` gets the target's place in the row, or null. */
class HeatText {
  constructor(row, onChoice) {
    this.onChoice = onChoice;
    this.current = null;
    const starts = new Set(row.new_document ?? []);
    this.spans = row.pieces.map((piece, place) => {
      const span = element("span", { class: "token" }, visible(piece).replaceAll("\n", "↵\n") || "·");
      span.place = place;
      span.starts = starts.has(place);
      return span;
    });
    const children = this.spans.flatMap((span) => (span.starts
      ? [element("span", { class: "document" }, "new document"), span] : [span]));
    this.node = element("div", {
      class: "text", tabindex: 0, role: "group", translate: "no", dir: "ltr",
      "aria-label": "Text of the row. Arrow keys go from token to token; their values are read below.",
    }, row.first ? element("span", { class: "token not-valid" }, visible(row.first)) : null, children);
    for (const kind of ["pointerover", "click"]) {
      this.node.addEventListener(kind, ({ target: { place } }) => { if (place !== undefined) this.choose(place); });
    }
    this.node.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const last = this.spans.length - 1;
    const at = this.current ?? -1;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 10, ArrowDown: at + 10, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.choose(Math.min(Math.max(moves[event.key], 0), last));
    this.spans[this.current].scrollIntoView({ block: "nearest" });
  }

  choose(place) {
    if (this.current !== null) this.spans[this.current].removeAttribute("aria-current");
    this.current = place;
    if (place !== null) this.spans[place].setAttribute("aria-current", "true");
    this.onChoice(place);
  }

  /** Colours and underlines every target. `describe(place)`: its class of colour, and whether it counts and is kept. */
  paint(describe) {
    for (const span of this.spans) {
      const { colour, valid, kept } = describe(span.place);
      const name = ["token", valid ? colour : "not-valid", kept && "kept"].filter(Boolean).join(" ");
      if (span.className !== name) span.className = name;
    }
  }
}
