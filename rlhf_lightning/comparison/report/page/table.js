// The table of groups: a row a group, sorted by any column, with its runs folded under it.

function groupTable(report, section) {
  if (!report.groups.length) {
    add(section, absence("No run here has figures to compare."));
    add(section, ...leftOut(report));
    return;
  }
  const state = { key: report.sort, falling: report.sort_falls, text: "", differences: false };
  const head = html("thead");
  const body = html("tbody");
  const seen = html("p", { class: "note", role: "status" });
  const best = report.metrics.map((metric, index) => bestOf(report.groups, metric, index));
  const columns = [
    ...report.keys.map((key) => ({ label: key, value: (group) => sortable(group.settings[key]) })),
    { label: "runs", numeric: true, value: (group) => group.finished },
    ...report.metrics.map((metric, index) => ({
      label: metric.label, name: metric.name, numeric: true, better: metric.better,
      value: (group) => group.estimates[index]?.mean ?? null,
    })),
  ];
  if (!report.keys.length) columns.unshift({ label: "group", value: (group) => group.name });

  const draw = () => {
    head.replaceChildren(html("tr", {}, columns.map((column) => heading(column, state, draw))));
    const column = columns.find((each) => (each.name ?? each.label) === state.key) ?? columns[0];
    const rows = report.groups
      .map((group, index) => ({ group, index, value: column.value(group) }))
      .filter(({ group }) => group.label.toLowerCase().includes(state.text))
      .sort((one, other) => compare(one.value, other.value, state.falling) || one.index - other.index);
    body.replaceChildren(...rows.flatMap(({ group, index }) => groupRows(report, group, index, best, state, columns.length)));
    seen.textContent = state.text ? `${rows.length} of ${count(report.groups.length, "group")}` : "";
  };
  const filter = html("input", { type: "search", id: "filter", placeholder: "kl.coef=0.1", oninput: (event) => {
    state.text = event.target.value.trim().toLowerCase();
    draw();
  } });
  const cells = report.baseline === null ? null : choice("Second line", [["", "95% interval"], ["differences", "difference from the baseline"]], "", (value) => {
    state.differences = value !== "";
    draw();
  });
  add(section,
    html("div", { class: "controls" }, html("label", { class: "choice" }, html("span", {}, "Filter"), filter), cells, seen),
    html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Groups and their figures" },
      html("table", { id: "group-table" }, html("caption", { class: "unseen" }, "Groups and their figures"), head, body)),
    html("p", { class: "note" }, report.notes.join(" ")),
    ...leftOut(report));
  draw();
}

/** Numbers sort as numbers, all else as text. */
function sortable(text) {
  if (text === undefined) return null;
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** What is missing comes last, whichever way the rest is sorted. */
function compare(one, other, falling) {
  if (one === null || other === null) return (one === null) - (other === null);
  const order = typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  return falling ? -order : order;
}

function bestOf(groups, metric, index) {
  const means = groups.map((group) => group.estimates[index]?.mean ?? null).filter((mean) => mean !== null);
  if (metric.better === null || means.length < 2) return null;
  const found = metric.better === "higher" ? Math.max(...means) : Math.min(...means);
  // What most of the groups reach marks none of them.
  return means.filter((mean) => mean === found).length * 2 > means.length ? null : found;
}

function heading(column, state, draw) {
  const key = column.name ?? column.label;
  const chosen = state.key === key;
  const arrow = chosen ? (state.falling ? " ↓" : " ↑") : "";
  const sort = () => {
    state.falling = chosen ? !state.falling : column.numeric === true && column.better !== "lower";
    state.key = key;
    draw();
    document.querySelector("#group-table th[aria-sort] button").focus();
  };
  return html("th", { scope: "col", class: column.numeric ? "numeric" : null, "aria-sort": chosen ? (state.falling ? "descending" : "ascending") : null },
    html("button", { type: "button", onclick: sort, title: column.name ?? null }, ...twoLines(column.label, arrow)));
}

/** `gold reward, iid`: what it is above, where it was measured below. */
function twoLines(label, arrow) {
  const [what, where] = parted(label);
  return [`${what}${arrow}`, where ? html("small", {}, where) : null].filter(Boolean);
}

function groupRows(report, group, index, best, state, width) {
  const details = html("tr", { class: "runs", hidden: true }, html("td", { colspan: width }, runList(report, group)));
  const unfold = html("button", { type: "button", class: "unfold", "aria-expanded": "false", "aria-label": `Runs of ${group.name}`, onclick: () => {
    details.hidden = !details.hidden;
    unfold.setAttribute("aria-expanded", String(!details.hidden));
  } }, group.finished === group.runs.length ? `${group.finished}` : `${group.finished} of ${group.runs.length}`);
  const labels = report.keys.length ? report.keys.map((key) => group.settings[key] ?? "–") : [group.name];
  const settings = labels.map((text, at) => html(at ? "td" : "th", { scope: at ? null : "row" },
    at ? text : html("span", { class: "named" }, swatch(index, false), html("span", {}, text,
      index === report.baseline ? html("small", {}, "baseline") : null))));
  const figures = report.metrics.map((_, at) => figureCell(group.estimates[at], group.deltas[at], best[at], state, index === report.baseline));
  return [html("tr", { "data-group": index }, settings, html("td", { class: "numeric" }, unfold), figures), details];
}

function figureCell(estimate, delta, best, state, isBaseline) {
  if (!estimate) return html("td", { class: "numeric" }, "–");
  const isBest = best !== null && estimate.mean === best;
  const star = isBest ? html("span", { class: "best", title: "best" }, "★", html("span", { class: "unseen" }, " best ")) : null;
  const second = state.differences ? (isBaseline ? "baseline" : delta ?? "–") : estimate.half ? `± ${estimate.half}` : "";
  return html("td", { class: "numeric", title: `n = ${estimate.count}` }, star, html(isBest ? "strong" : "span", {}, estimate.text), html("small", {}, second));
}

function runList(report, group) {
  return html("table", {},
    html("thead", {}, html("tr", {}, ["run", "seed", "state", "time"].map((name) => html("th", { scope: "col" }, name)),
      report.metrics.map((metric) => html("th", { scope: "col", class: "numeric" }, metric.label)))),
    html("tbody", {}, group.runs.map((at) => report.runs[at]).map((run) => html("tr", {},
      html("th", { scope: "row", title: run.directory }, run.name), html("td", {}, run.seed ?? "–"), html("td", { class: `state ${run.state}` }, run.state),
      html("td", {}, duration(run.seconds)),
      report.metrics.map((metric, index) => html("td", { class: "numeric" }, run.finished ? number(run.figures[index], metric.style) : "–"))))));
}

function leftOut(report) {
  if (!report.left_out.length) return [];
  const entry = ({ where, why }) => html("li", {}, html("code", {}, where), html("span", {}, why),
    html("small", {}, report.runs.find((run) => run.name === where)?.directory));
  return [html("h3", {}, "Left out"), html("ul", { id: "left-out" }, report.left_out.map(entry))];
}
