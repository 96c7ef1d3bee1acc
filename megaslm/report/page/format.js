// Numbers as text: few digits, with their unit.

const NOTHING = "–";
const COUNTS = [[1, ""], [1e3, "k"], [1e6, "M"], [1e9, "B"], [1e12, "T"]];
const FLOPS = [[1, " FLOP"], [1e6, " MFLOP"], [1e9, " GFLOP"], [1e12, " TFLOP"], [1e15, " PFLOP"], [1e18, " EFLOP"],
  [1e21, " ZFLOP"], [1e24, " YFLOP"]];
const SECONDS = [[1, " s"], [60, " min"], [3600, " h"]];
const GPU_HOURS = [[1, " GPU-h"]];

const QUANTITIES = {
  tokens: { name: "tokens read", units: COUNTS, suffix: " tokens" },
  selected_tokens: { name: "tokens selected", units: COUNTS, suffix: " tokens" },
  flops: { name: "FLOPs", units: FLOPS, suffix: "" },
  seconds: { name: "time", units: SECONDS, suffix: "" },
  gpu_hours: { name: "GPU-hours", units: GPU_HOURS, suffix: "" },
};

const COUNTED_FLOPS = "FLOPs are those of matrix products: three forward passes per token read, and one more where " +
  "the selection made a second forward pass. Recomputation is not counted.";

/** The largest unit in which a number is at least 1, or the smallest one. */
function unitFor(units, largest) {
  return units.findLast(([size]) => largest >= size) ?? units[0];
}

/** A number with three digits, and some more only before the point. */
function digits(number) {
  const size = Math.abs(number);
  if (size >= 1e7) return scientific(number);
  if (size >= 1000) return Math.round(number).toLocaleString("en");
  if (size < 1e-3 && size > 0) return scientific(number);
  return String(Number(number.toPrecision(3))).replace("-", "−");
}

/** Such as 1.2×10⁻⁵. */
function scientific(number) {
  const [factor, power] = number.toExponential(1).split("e");
  const raised = power.replace("+", "").replace(/./g, (sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign]));
  return `${factor.replace(".0", "").replace("-", "−")}×10${raised}`;
}

/** A number in the unit that suits it. */
function inUnits(number, units) {
  if (!isNumber(number)) return NOTHING;
  if (units === SECONDS) return duration(number);
  const [size, unit] = unitFor(units, Math.abs(number));
  return digits(number / size) + unit;
}

/** A time as the commands tell it, such as `4.2 s`, `3 min 05 s` or `27 h 14 min`. No unit begins a line. */
function duration(seconds) {
  if (seconds < 59.95) return `${seconds.toFixed(1)}\u00a0s`;
  const [size, unit, smaller] = seconds < 3599.5 ? [60, "min", "s"] : [3600, "h", "min"];
  const parts = Math.round(seconds / (size / 60));
  const rest = String(parts % 60).padStart(2, "0");
  return `${Math.floor(parts / 60).toLocaleString("en")}\u00a0${unit} ${rest}\u00a0${smaller}`;
}

/** An amount of a quantity, such as `tokens` or `seconds`. */
const amount = (number, quantity) => inUnits(number, QUANTITIES[quantity].units);
const whole = (number) => (isNumber(number) ? Math.round(number).toLocaleString("en") : NOTHING);
const nats = (number, decimals = 3) => (isNumber(number) ? number.toFixed(decimals).replace("-", "−") : NOTHING);
const signedNats = (number) => (isNumber(number) && number > 0 ? "+" : "") + nats(number);
const percent = (ratio) => {
  if (!isNumber(ratio)) return NOTHING;
  const hundredths = 100 * ratio;
  return `${Number(hundredths.toFixed(Math.abs(hundredths) < 10 ? 1 : 0)).toLocaleString("en")}%`;
};
const plain = (number) => (isNumber(number) ? digits(number) : NOTHING);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// Control characters but tab and newline, and marks that are not seen or that set the direction of text.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Text of a token in which nothing is hidden: what is not seen is shown by its code. */
function visible(text) {
  const code = (character) => character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
  return text.replace(UNSEEN, (character) => `⟨U+${code(character)}⟩`).replace(LONE_SURROGATE, "\ufffd");
}

/** A token in a sentence or a table: on one line, and of at most 40 characters. */
function quoted(text) {
  const shown = visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
  const letters = [...shown];
  return letters.length > 40 ? `${letters.slice(0, 39).join("")}…` : shown;
}
