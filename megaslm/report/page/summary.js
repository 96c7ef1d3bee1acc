// The first screen: what SLM bought, in numbers.

const NOTHING_COMPARED = "Nothing is compared here. A comparison needs a CLM run with a finite last loss, and a " +
  "selective run that shares a validation set with it.";
const REACHED = ["tokens", "selected_tokens", "flops", "seconds", "gpu_hours"];

/** What the runs came to, as a few large numbers with a sentence each. */
function summarySection({ runs, targets: [targets], costs, sweep, notes = [] }) {
  const best = targets ? bestRun(runs, targets) : null;
  const swept = best ? [] : sweepFacts(sweep);
  const isAlone = !best && !swept.length;
  const facts = best ? comparisonFacts(best, runs, targets, costs) : isAlone ? runs.slice(0, 4).flatMap(runFacts) : swept;
  const list = element("dl", { class: "facts" }, facts.map(([number, sentence]) =>
    element("div", {}, element("dt", {}, number), element("dd", {}, sentence))));
  const sentences = [
    ...notes,
    isAlone && runs.length > 1 ? NOTHING_COMPARED : null,
    isAlone && runs.length > 4 ? `The first 4 of ${runs.length} runs are shown here.` : null,
  ].filter(Boolean).map((text) => element("p", {}, text));
  return section("summary", best ? `${best.name} against ${targets.baseline}` : "In short",
    facts.length ? list : null, sentences, stateNotes(runs));
}

/**
 * The selective run of lowest final loss at the place of the targets; null where there is none. A run that read as
 * many tokens as the baseline comes before one that read more or fewer.
 */
function bestRun(runs, { place, baseline }) {
  const base = lastAt(runs.find((run) => run.name === baseline), place);
  const others = runs.filter((run) => run.objective === "slm" && isNumber(lastAt(run, place).loss));
  const unequal = (run) => Number(!isEqual(lastAt(run, place).tokens, base.tokens));
  return others.sort((a, b) => unequal(a) - unequal(b) || lastAt(a, place).loss - lastAt(b, place).loss)[0] ?? null;
}

/** The last loss of a run at a place, and the tokens read until then. */
function lastAt(run, place) {
  const found = (run?.validations ?? []).find((validation) => validation.place === place);
  return { loss: lastOf(unpack(found?.loss)), tokens: lastOf(unpack(found?.tokens)) };
}

/** Whether two amounts differ by a hundredth at most. */
const isEqual = (one, other) => Math.abs(one - other) <= 0.01 * other;

function comparisonFacts(best, runs, { place, baseline, rows }, costs) {
  const end = rows.at(-1);
  const base = runs.find((run) => run.name === baseline);
  const [own, theirs] = [best.name, baseline].map((name) => end?.reached.find((reached) => reached.run === name));
  const even = (costs?.break_even ?? []).find((found) => found.run === best.name && (found.place ?? place) === place);
  return [
    lossFact(best, base, place), worseFact(best, base, place),
    own && tokensFact(best, baseline, end, own, theirs), own && timeFact(own, theirs), even && breakEvenFact(even),
  ].filter(Boolean);
}

/** The last loss of a run beside that of the baseline; beside its loss at as many tokens where the run read fewer. */
function beside(best, base, place) {
  const [own, theirs] = [lastAt(best, place), lastAt(base, place)];
  const isEqualTokens = isEqual(own.tokens, theirs.tokens);
  const isShorter = !isEqualTokens && own.tokens < theirs.tokens;
  const loss = isShorter ? lossAfter(base, place, own.tokens) : theirs.loss;
  const tokens = [own, theirs].map((last) => amount(last.tokens, "tokens"));
  return {
    own: own.loss, loss, difference: own.loss - loss,
    when: isShorter ? `after ${tokens[0]} tokens each` : "at the end",
    unequal: isEqualTokens || isShorter ? "" : ` Not at equal tokens: ${tokens.join(" against ")}.`,
  };
}

/** The loss of a run at a place after so many tokens, linear between two validations. */
function lossAfter(run, place, count) {
  const found = run.validations.find((validation) => validation.place === place);
  const [tokens, losses] = [unpack(found.tokens), unpack(found.loss)];
  const next = Math.max(tokens.findIndex((number) => number >= count), 1);
  const share = (count - tokens[next - 1]) / (tokens[next] - tokens[next - 1]);
  return losses[next - 1] + share * (losses[next] - losses[next - 1]);
}

function lossFact(best, base, place) {
  const { own, loss, difference, when, unequal } = beside(best, base, place);
  if (!isNumber(difference)) return null;
  return [`${nats(Math.abs(difference))} nats ${difference <= 0 ? "lower" : "higher"}`,
    `Loss on ${place} ${when}: ${nats(own)} against ${nats(loss)} ` +
      `(perplexity\u00a0×\u00a0${digits(Math.exp(difference))}).${unequal}`];
}

/** The loss at the place where the run ended farthest above the baseline; null where it did nowhere. */
function worseFact(best, base, place) {
  const excess = (other) => beside(best, base, other).difference;
  const others = best.validations.map((found) => found.place).filter((other) => other !== place
    && base.validations.some((found) => found.place === other) && excess(other) > 0);
  return others.length ? lossFact(best, base, others.sort((a, b) => excess(b) - excess(a))[0]) : null;
}

function tokensFact(best, baseline, { loss }, own, theirs) {
  const target = `${baseline}’s last loss of ${nats(loss)} nats`;
  if (!isNumber(own.tokens)) {
    return best.state === "complete" ? ["not reached", `${best.name} did not reach ${target}.`]
      : ["not reached yet", `${best.name} has not reached ${target} so far.`];
  }
  return [`${percent(own.tokens / theirs.tokens)} of the tokens`,
    `Read until ${target} was reached: ${amount(own.tokens, "tokens")} of ${amount(theirs.tokens, "tokens")}.`];
}

function timeFact(own, theirs) {
  if (!isNumber(own.seconds) || !isNumber(theirs?.seconds)) return null;
  const all = own.seconds_with_reference;
  const counted = isNumber(all)
    ? ` With the reference’s training and the scoring: ${percent(all / theirs.seconds)}.` : "";
  return [`${percent(own.seconds / theirs.seconds)} of the time`,
    `Until that loss: ${amount(own.seconds, "seconds")} of ${amount(theirs.seconds, "seconds")}.${counted}`];
}

function breakEvenFact({ runs, sentence, is_known: isKnown }) {
  const count = isNumber(runs) ? Math.ceil(runs) : null;
  const none = isKnown === false ? "break-even not known" : "no break-even";
  return [count === null ? none : `${whole(count)} ${count === 1 ? "run" : "runs"}`, sentence];
}

/** The value of a swept setting whose run ended with the lowest loss. */
const sweepFacts = (sweep) => (sweep?.best ? [[`${nats(sweep.best.loss)} nats`, sweep.best.sentence]] : []);

/** A run alone: its last losses, and what it took. */
function runFacts(run) {
  const validation = (run.validations ?? []).map((found) => [lastOf(unpack(found.loss)), `on ${found.place}`]);
  const [loss, where] = validation.find(([found]) => isNumber(found))
    ?? [lastOf(unpack(run.series?.loss)), "in training"];
  if (!isNumber(loss)) return [];
  const spent = REACHED.map((key) => [lastOf(unpack(run.series?.[key])), key]).filter(([number]) => isNumber(number));
  const words = spent.map(([number, key]) =>
    (QUANTITIES[key].units === COUNTS ? `${amount(number, key)} ${QUANTITIES[key].name}` : amount(number, key)));
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
