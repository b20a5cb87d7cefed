// How a group looks in every chart (a color, a marker) and whether it is shown; one choice for the whole page.

const COLORS = 8;
const SHOWN_AT_FIRST = 8;
const MARKERS = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
  "M-3.5,-3.5h7v7h-7Z",
  "M0,-4.8L4.6,3.4H-4.6Z",
  "M0,-5L5,0L0,5L-5,0Z",
  "M0,4.8L4.6,-3.4H-4.6Z",
  "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
  "M-4.5,-2.4L-2.4,-4.5L0,-2.1L2.4,-4.5L4.5,-2.4L2.1,0L4.5,2.4L2.4,4.5L0,2.1L-2.4,4.5L-4.5,2.4L-2.1,0Z",
  "M0,-5L1.5,-1.6L5,-1.5L2.3,0.9L3.2,4.5L0,2.5L-3.2,4.5L-2.3,0.9L-5,-1.5L-1.5,-1.6Z",
];

const shown = new Set();
const redraws = [];

function seriesClass(index) {
  return `series-${index % COLORS}`;
}

/** After the colors are used up they come again, each with another marker. */
function marker(index, x, y, { size = 1, hollow = false } = {}) {
  return svg("path", {
    d: MARKERS[(index + Math.floor(index / COLORS)) % MARKERS.length],
    class: hollow ? "marker hollow" : "marker",
    transform: `translate(${x.toFixed(1)},${y.toFixed(1)}) scale(${size})`,
  });
}

function swatch(index, withLine) {
  const line = withLine ? svg("line", { x1: 0, x2: 28, y1: 8, y2: 8, class: "line" }) : null;
  const width = withLine ? 28 : 16;
  return svg("svg", { class: `swatch ${seriesClass(index)}`, viewBox: `0 0 ${width} 16`, width, height: 16, "aria-hidden": "true" },
    line, marker(index, width / 2, 8));
}

/** Which groups are shown when the page opens: the best, and the baseline. */
function startSeries(groups, baseline) {
  groups.slice(0, SHOWN_AT_FIRST).forEach((_, index) => shown.add(index));
  if (baseline !== null) shown.add(baseline);
}

/** Buttons that show and hide groups in all charts. `draw` is called after each change, wherever it was made. */
function legend(groups, draw) {
  const buttons = groups.map((group, index) => html("button", {
    type: "button", "aria-pressed": String(shown.has(index)), title: group.label,
    onclick: () => show(new Set(shown.has(index) ? [...shown].filter((other) => other !== index) : [...shown, index])),
  }, swatch(index, true), html("span", {}, group.name)));
  redraws.push(() => {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(shown.has(index))));
    draw();
  });
  const all = html("button", { type: "button", class: "plain", onclick: () => show(groups.keys()) }, "All");
  const none = html("button", { type: "button", class: "plain", onclick: () => show([]) }, "None");
  return html("div", { class: "legend", role: "group", "aria-label": "Groups shown in the charts" },
    buttons, groups.length > 2 ? [all, none] : []);
}

function show(indices) {
  const wanted = [...indices];
  shown.clear();
  wanted.forEach((index) => shown.add(index));
  redraws.forEach((redraw) => redraw());
}
