// Elements are made here and nowhere else. Text enters as text nodes only, so that nothing a model or a config says is
// ever read as HTML.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function html(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
}

/** Appends children to a node that is there; null stands for none. */
function add(node, ...children) {
  return furnish(node, {}, children);
}

/** A labeled <select>; `options` are [value, text] pairs, or [heading, pairs] for groups of them. */
function choice(label, options, chosen, onchange) {
  const option = ([value, text]) => html("option", { value, selected: value === chosen }, text);
  const entry = ([head, rest]) => (Array.isArray(rest) ? html("optgroup", { label: head }, rest.map(option)) : option([head, rest]));
  return html("label", { class: "choice" }, html("span", {}, label),
    html("select", { "aria-label": label, onchange: (event) => onchange(event.target.value) }, options.map(entry)));
}

/** What stands where a section has nothing to show, and why. */
function absence(text) {
  return html("p", { class: "absent" }, text);
}
