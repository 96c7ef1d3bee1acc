// The first screen: what SLM bought, in numbers.

const REACHED = ["tokens", "selected_tokens", "flops", "seconds", "gpu_hours"];

/** What the runs came to, as a few large numbers with a sentence each. */
function summarySection({ runs, targets: [targets], costs, notes = [] }) {
  const best = targets ? bestRun(runs, targets) : null;
  const facts = best ? comparisonFacts(best, runs, targets, costs) : runs.slice(0, 4).flatMap(runFacts);
  const list = element("dl", { class: "facts" }, facts.map(([number, sentence]) =>
    element("div", {}, element("dt", {}, number), element("dd", {}, sentence))));
  const sentences = [
    ...notes,
    !best && runs.length > 1 ? "No CLM run shares a validation set with another run, so nothing is compared here." : null,
    !best && runs.length > 4 ? `The first 4 of ${runs.length} runs are shown here.` : null,
  ].filter(Boolean).map((text) => element("p", {}, text));
  return section("summary", best ? `${best.name} against ${targets.baseline}` : "In short", facts.length ? list : null, sentences,
    stateNotes(runs));
}

/** The run of lowest final loss at the place of the targets, the baseline apart; null where there is none. */
function bestRun(runs, targets) {
  const others = runs.filter((run) => run.name !== targets.baseline && isNumber(finalLoss(run, targets.place)));
  return others.sort((a, b) => finalLoss(a, targets.place) - finalLoss(b, targets.place))[0] ?? null;
}

function finalLoss(run, place) {
  const found = (run.validations ?? []).find((validation) => validation.place === place);
  return found ? lastOf(unpack(found.loss)) : null;
}

function comparisonFacts(best, runs, { place, baseline, rows }, costs) {
  const base = runs.find((run) => run.name === baseline);
  const ends = [finalLoss(best, place), base ? finalLoss(base, place) : null];
  const difference = ends[0] - ends[1];
  const facts = [];
  if (ends.every(isNumber)) {
    const side = difference <= 0 ? "lower" : "higher";
    facts.push([`${nats(Math.abs(difference))} nats ${side}`, `Loss on ${place} at the end: ${nats(ends[0])} against ${nats(ends[1])} ` +
      `(perplexity × ${digits(Math.exp(difference))}).`]);
  }
  const target = rows.at(-1);
  const [own, theirs] = [best.name, baseline].map((name) => target?.reached.find((reached) => reached.run === name));
  const share = (key, over = key) => (isNumber(own?.[key]) && isNumber(theirs?.[over]) ? own[key] / theirs[over] : null);
  if (own && !isNumber(own.tokens)) facts.push(["not reached", `${best.name} did not reach ${baseline}’s final loss of ${nats(target.loss)} nats.`]);
  if (isNumber(share("tokens"))) {
    facts.push([`${percent(share("tokens"))} of the tokens`, `Read until ${baseline}’s final loss of ${nats(target.loss)} nats was reached: ` +
      `${amountOf(own.tokens, theirs.tokens, "tokens")}.`]);
  }
  if (isNumber(share("seconds"))) {
    const counted = isNumber(share("seconds_with_reference", "seconds"))
      ? ` With the reference’s training and the scoring: ${percent(share("seconds_with_reference", "seconds"))}.` : "";
    facts.push([`${percent(share("seconds"))} of the time`, `Until that loss: ${amountOf(own.seconds, theirs.seconds, "seconds")}.${counted}`]);
  }
  const even = (costs?.break_even ?? []).find((found) => found.run === best.name);
  if (even) facts.push([isNumber(even.runs) ? `${whole(Math.ceil(even.runs))} ${even.runs > 1 ? "runs" : "run"}` : "no break-even", even.sentence]);
  return facts;
}

/** A run alone: its last losses, and what it took. */
function runFacts(run) {
  const validation = (run.validations ?? []).map((found) => [lastOf(unpack(found.loss)), `on ${found.place}`]);
  const [loss, where] = validation.find(([found]) => isNumber(found)) ?? [lastOf(unpack(run.series?.loss)), "in training"];
  if (!isNumber(loss)) return [];
  const spent = REACHED.map((key) => [lastOf(unpack(run.series?.[key])), key]).filter(([number]) => isNumber(number));
  const words = spent.map(([number, key]) => (COUNTS === QUANTITIES[key].units ? `${amount(number, key)} ${QUANTITIES[key].name}` : amount(number, key)));
  return [[`${nats(loss)} nats`, `Last loss of ${run.name} ${where}, after ${words.join(", ")}.`]];
}

/** What a reader must know before any number: runs that are unfinished, and what could not be read. */
function stateNotes(runs) {
  const notes = runs.flatMap((run) => {
    const found = [run.state === "complete" ? null : "unfinished", ...(run.notes ?? [])].filter(Boolean);
    return found.length ? [element("li", {}, element("b", {}, run.name), `: ${found.join("; ")}`)] : [];
  });
  return notes.length ? element("ul", { class: "notes" }, notes) : null;
}
