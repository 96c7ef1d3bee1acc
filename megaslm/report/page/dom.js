// Elements. Text enters the page by text nodes alone, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child is a node, a text or a list of these, and null is left out. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** A section with its heading, or null where it has no parts. */
function section(id, title, ...parts) {
  const present = parts.flat(Infinity).filter((part) => part);
  if (!present.length) return null;
  return element("section", { id, "aria-labelledby": `${id}-title` },
    element("h2", { id: `${id}-title` }, title), ...present);
}

/**
 * A table that scrolls on its own where it is too wide. The first column has the heads of the rows. A cell is a text, a
 * node or null. A column without any cell is left out. A text in place of a row heads the rows after it. `words`: the
 * columns, beside the first, that are not numbers.
 */
function table(caption, heads, rows, words = []) {
  const cells = rows.filter(Array.isArray);
  const columns = heads.map((_, column) => column).filter((column) =>
    column === 0 || cells.some((row) => row[column] !== null && row[column] !== undefined && row[column] !== NOTHING));
  const kind = (column) => (column === 0 || words.includes(column) ? "words" : "number");
  const cell = (row, column) => element(column === 0 ? "th" : "td",
    { scope: column === 0 ? "row" : null, class: kind(column) }, row[column] ?? NOTHING);
  const line = (row) => element("tr", {}, Array.isArray(row) ? columns.map((column) => cell(row, column))
    : element("th", { scope: "rowgroup", colspan: columns.length, class: "group" }, row));
  const starts = rows.flatMap((row, at) => (at === 0 || !Array.isArray(row) ? [at] : []));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {},
        columns.map((column) => element("th", { scope: "col", class: kind(column) }, heads[column])))),
      starts.map((start, at) => element("tbody", {}, rows.slice(start, starts[at + 1]).map(line)))));
}

/** A closed part whose content is made each time that it is opened. */
function details(summary, makeContent) {
  const content = element("div");
  const node = element("details", { class: "numbers" }, element("summary", {}, summary), content);
  node.refresh = () => { if (node.open) content.replaceChildren(makeContent()); };
  node.addEventListener("toggle", node.refresh);
  return node;
}

/** One of several choices as radio buttons. `choices`: [value, label] pairs. `onChoice` gets the value. */
function radios(name, legend, choices, chosen, onChoice) {
  return element("fieldset", {}, element("legend", {}, legend), choices.map(([value, label]) => {
    const input = element("input", { type: "radio", name, value, checked: value === chosen });
    input.addEventListener("change", () => onChoice(value));
    return element("label", {}, input, element("span", {}, label));
  }));
}

/** A box to tick. `onChange` gets whether it is ticked. */
function tick(label, checked, onChange, attributes = {}) {
  const input = element("input", { type: "checkbox", checked, ...attributes });
  input.addEventListener("change", () => onChange(input.checked));
  return element("label", {}, input, ...[label].flat());
}

/** A choice from a list, with its label. `choices`: [value, label] pairs. */
function selection(label, choices, onChoice) {
  const select = element("select", {}, choices.map(([value, text]) => element("option", { value }, text)));
  select.addEventListener("change", () => onChoice(select.value));
  return element("label", { class: "choice" }, `${label} `, select);
}
