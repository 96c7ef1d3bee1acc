// Which targets a selection keeps: the rule of megaslm/slm (topk.py) over the probe rows of the page.

const RANKED = ["excess", "loss", "reference"];
const MILLION = 1e6;
const PARTS_PER_NAT = 2 ** 20;

/** The rows of a run's heat map as flat arrays over R·L targets. */
class HeatData {
  constructor(heat) {
    this.heat = heat;
    this.length = heat.rows[0].pieces.length;
    this.rows = heat.rows.length;
    this.valid = concatenated(heat.rows.map((row) => unpack(row.valid)));
    this.reference = unpack(heat.ref_loss);
    this.losses = heat.checkpoints.map(({ loss }) => unpack(loss));
    const last = heat.checkpoints.length - 1;
    this.keptByRun = heat.checkpoints.map(({ kept }, checkpoint) =>
      unpack(kept ?? (checkpoint === last ? heat.kept_by_run : null)));
    this.ranks = new Map();
    this.values = new Map();
  }

  /** Whether the page can rank: it has no entropies, and does not know random numbers or masks. */
  get canRank() {
    return RANKED.includes(this.heat.criterion) && (this.heat.criterion === "loss" || this.reference !== null);
  }

  loss(checkpoint, target) {
    return this.losses[checkpoint][target];
  }

  /** In float32, as the training has it. */
  excess(checkpoint, target) {
    return this.reference ? Math.fround(this.losses[checkpoint][target] - this.reference[target]) : NaN;
  }

  value(checkpoint, target) {
    const { criterion } = this.heat;
    if (criterion === "reference") return -this.reference[target];
    return criterion === "loss" ? this.loss(checkpoint, target) : this.excess(checkpoint, target);
  }

  /** The values at a checkpoint that rank the targets: their own, or the means of their spans. */
  valuesAt(checkpoint) {
    if (!this.values.has(checkpoint)) {
      const own = Float64Array.from({ length: this.rows * this.length }, (_, target) => this.value(checkpoint, target));
      this.values.set(checkpoint, this.ranksSpans ? this.spanMeans(own) : own);
    }
    return this.values.get(checkpoint);
  }

  get ranksSpans() {
    return isNumber(this.heat.span_reach);
  }

  /** As span_means in megaslm/slm/spans.py: sums of whole numbers, over the valid targets of each span. */
  spanMeans(own) {
    const sums = new Float64Array(own.length + 1);
    const counts = new Int32Array(own.length + 1);
    own.forEach((value, target) => {
      const counted = this.valid[target] === 1 && Number.isFinite(value);
      sums[target + 1] = sums[target] + (counted ? Math.floor(value * PARTS_PER_NAT) : 0);
      counts[target + 1] = counts[target] + Number(counted);
    });
    const means = own.slice();
    this.heat.rows.forEach(({ new_document }, row) => {
      const bounds = [0, ...new_document.filter((place) => place > 0), this.length].map((place) => row * this.length + place);
      for (let document = 1; document < bounds.length; document++) {
        for (let target = bounds[document - 1]; target < bounds[document]; target++) {
          if (!Number.isFinite(own[target])) continue;
          const start = Math.max(bounds[document - 1], target - this.heat.span_reach);
          const stop = Math.min(bounds[document], target + this.heat.span_reach + 1);
          const count = Math.max(1, counts[stop] - counts[start]);
          means[target] = Math.fround((sums[stop] - sums[start]) / (count * PARTS_PER_NAT));
        }
      }
    });
    return means;
  }

  /** The targets that are ranked together: all, or those of each row. As [start, end) pairs. */
  groups() {
    if (this.heat.scope !== "sequence") return [[0, this.rows * this.length]];
    return Array.from({ length: this.rows }, (_, row) => [row * this.length, (row + 1) * this.length]);
  }

  /**
   * The rank of each target in its group at a checkpoint, from 0; of equal values the lower target comes first. It is -1
   * where a target cannot be selected.
   */
  ranksAt(checkpoint) {
    if (!this.ranks.has(checkpoint)) {
      const ranks = new Int32Array(this.rows * this.length).fill(-1);
      const values = this.valuesAt(checkpoint);
      for (const [start, end] of this.groups()) {
        const falling = [];
        for (let target = start; target < end; target++) {
          if (this.eligible(checkpoint, target)) falling.push(target);
        }
        falling.sort((a, b) => values[b] - values[a] || a - b);
        falling.forEach((target, rank) => { ranks[target] = rank; });
      }
      this.ranks.set(checkpoint, ranks);
    }
    return this.ranks.get(checkpoint);
  }

  eligible(checkpoint, target) {
    const cap = this.heat.max_ref_loss;
    const capped = isNumber(cap) && this.reference?.[target] > cap;
    return this.valid[target] === 1 && !capped && Number.isFinite(this.value(checkpoint, target));
  }

  /** The kept targets, (R·L) of 0 and 1: of each group of N valid targets the ⌊k·N + ½⌋ of largest value. */
  kept(checkpoint, ratio) {
    if (!this.canRank) return this.keptByRun[checkpoint] ?? this.keptByRun.at(-1) ?? this.valid;
    const kept = new Uint8Array(this.rows * this.length);
    const ranks = this.ranksAt(checkpoint);
    for (const [start, end] of this.groups()) {
      const count = keepCount(sum(this.valid, start, end), ratio);
      for (let target = start; target < end; target++) {
        kept[target] = Number(ranks[target] >= 0 && ranks[target] < count);
      }
    }
    return kept;
  }

  /** The texts whose targets are kept most and least, among texts with at least `least` targets. */
  tokenShares(kept, least) {
    const counts = new Map();
    this.heat.rows.forEach(({ pieces }, row) => pieces.forEach((piece, place) => {
      const target = row * this.length + place;
      if (!this.valid[target] || !piece) return;
      const count = counts.get(piece) ?? { piece, total: 0, kept: 0 };
      count.total += 1;
      count.kept += kept[target];
      counts.set(piece, count);
    }));
    return [...counts.values()].filter(({ total }) => total >= least);
  }
}

/** ⌊k·N + ½⌋ in whole numbers, with k in millionths. */
function keepCount(valid, ratio) {
  return Math.floor((2 * Math.round(ratio * MILLION) * valid + MILLION) / (2 * MILLION));
}

function sum(numbers, start = 0, end = numbers.length) {
  return numbers.subarray(start, end).reduce((total, number) => total + number, 0);
}

function concatenated(parts) {
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  parts.reduce((start, part) => { whole.set(part, start); return start + part.length; }, 0);
  return whole;
}
