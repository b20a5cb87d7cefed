// Parallel coordinates: a line a run through its settings and its results, colored by how well it did. Dragging along an
// axis keeps the runs that pass there.

const PARALLEL = { height: 340, top: 46, bottom: 26, side: 64, least: 112, letters: 15 };
const RAMP = [[61, 116, 214], [165, 101, 181], [207, 122, 31]];

function parallelSection(report, section) {
  const runs = report.runs.filter((run) => run.finished);
  const axes = parallelAxes(report, runs);
  if (runs.length < 2 || axes.length < 2) {
    add(section, absence(runs.length < 2 ? "It takes two finished runs to compare settings with results." : "These runs share all settings and figures that could be drawn here."));
    return;
  }
  const brushes = new Map();
  const list = html("p", { class: "note", role: "status" });
  const reset = html("button", { type: "button", class: "plain", onclick: () => {
    brushes.clear();
    chart.redraw();
  } }, "All runs");
  const chart = canvas((width) => parallelChart(report, runs, axes, brushes, width, (kept) => {
    reset.hidden = !brushes.size;
    list.textContent = brushes.size ? `${kept.length} of ${count(runs.length, "run")}: ${kept.map((run) => run.name).join(", ")}` : "";
  }));
  add(section,
    html("div", { class: "controls" }, html("span", { class: "note" }, "Drag along an axis, or focus it and use the arrow keys, to keep the runs that pass there; click or Escape to let go."), reset),
    html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Settings and results of each run" }, chart.box), list, rampKey(report, runs));
}

/** Settings that differ, then figures that runs have; a figure that is the same everywhere tells nothing. */
function parallelAxes(report, runs) {
  const settings = report.run_keys.map((key) => settingAxis(key, runs.map((run) => run.settings[key] ?? null)));
  const figures = report.metrics
    .map((metric, index) => ({ metric, values: runs.map((run) => run.figures[index]) }))
    .filter(({ values }) => new Set(values.filter((value) => value !== null)).size > 1)
    .map(({ metric, values }) => {
      const [low, high] = extent(values, 0.03);
      return { label: metric.label, values, place: scale(low, high, 1, 0), ticks: (place) => place.ticks(4).map((value) => [value, tick(value, metric.style)]), write: (value) => number(value, metric.style) };
    });
  return [...settings, ...figures];
}

function settingAxis(label, values) {
  const distinct = [...new Set(values.filter((value) => value !== null))];
  const numbers = distinct.map(sortable);
  if (distinct.length > 6 && numbers.every((value) => typeof value === "number")) {
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const place = scale(low, high, 1, 0, low > 0 && high / low > 20);
    return { label, values: values.map((value) => (value === null ? null : Number(value))), place, ticks: () => place.ticks(5).map((value) => [value, tick(value)]), write: tick };
  }
  const order = distinct.sort((one, other) => compare(sortable(one), sortable(other), false));
  const place = (value) => (order.length === 1 ? 0.5 : 1 - order.indexOf(value) / (order.length - 1));
  return { label, values, place, ticks: () => order.map((value) => [value, value]), write: String };
}

function parallelChart(report, runs, axes, brushes, width, tell) {
  const full = Math.max(width, 2 * PARALLEL.side + PARALLEL.least * (axes.length - 1));
  const { height, top, bottom, side } = PARALLEL;
  const across = (index) => side + (index * (full - 2 * side)) / (axes.length - 1);
  const down = (share) => top + share * (height - top - bottom);
  const root = svg("svg", { class: "parallel", viewBox: `0 0 ${full} ${height}`, width: full, height, role: "group", "aria-label": `${count(runs.length, "run")} through ${axes.map((axis) => axis.label).join(", ")}` });
  const tint = objectiveTint(report, runs);
  const paths = runs.map((run, at) => {
    const places = axes.map((axis, index) => [across(index), axis.values[at] === null ? null : down(axis.place(axis.values[at]))]);
    const path = svg("path", { class: "way", d: trace(places), stroke: tint(run), "data-run": run.name });
    root.append(path);
    return { run, at, path, places };
  });
  const apply = () => {
    const kept = paths.filter(({ at }) => axes.every((axis, index) => {
      const brush = brushes.get(index);
      if (!brush) return true;
      const share = axis.values[at] === null ? null : axis.place(axis.values[at]);
      return share !== null && share >= brush[0] - 1e-9 && share <= brush[1] + 1e-9;
    }));
    const inside = new Set(kept.map(({ at }) => at));
    for (const { at, path } of paths) path.classList.toggle("out", !inside.has(at));
    tell(kept.map(({ run }) => run));
  };
  inspect(root, paths.map(({ run, at, places }) => places.map(([x, y], index) => ({ x, y, lines: [
    run.name, `${axes[index].label} ${axes[index].values[at] === null ? "–" : axes[index].write(axes[index].values[at])}`, `${report.objective} ${number(run.objective)}`] })).filter(({ y }) => y !== null)));
  axes.forEach((axis, index) => root.append(parallelAxis(axis, index, across(index), down, brushes, apply)));
  apply();
  return root;
}

function parallelAxis(axis, index, x, down, brushes, apply) {
  const [what, where] = parted(axis.label);
  const window = svg("rect", { class: "brush", x: x - 8, width: 16, y: 0, height: 0 });
  const group = svg("g", { class: "brushed", tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-label": `Keep runs by ${axis.label}`, "aria-valuemin": 0, "aria-valuemax": 100 },
    svg("line", { class: "axis", x1: x, x2: x, y1: down(0), y2: down(1) }),
    svg("text", { class: "label", x, y: 14, "text-anchor": "middle" }, svg("title", {}, axis.label), shortened(what, PARALLEL.letters)),
    svg("text", { class: "tick", x, y: 29, "text-anchor": "middle" }, shortened(where, PARALLEL.letters)),
    axis.ticks(axis.place).map(([value, text]) => svg("text", { class: "tick halo", x: x + 6, y: down(axis.place(value)) + 4 }, shortened(text, PARALLEL.letters))),
    window, svg("rect", { class: "grip", x: x - 14, width: 28, y: down(0) - 8, height: down(1) - down(0) + 16 }));
  const show = () => {
    const brush = brushes.get(index);
    window.setAttribute("y", brush ? down(brush[0]) : 0);
    window.setAttribute("height", brush ? Math.max(2, down(brush[1]) - down(brush[0])) : 0);
    group.setAttribute("aria-valuenow", brush ? Math.round(100 - 50 * (brush[0] + brush[1])) : 50);
    group.setAttribute("aria-valuetext", brush ? `from ${Math.round(100 * (1 - brush[1]))}% to ${Math.round(100 * (1 - brush[0]))}% of the axis` : "all");
    apply();
  };
  const set = (low, high) => {
    brushes.set(index, [Math.max(0, low), Math.min(1, high)]);
    show();
  };
  const clear = () => {
    brushes.delete(index);
    show();
  };
  dragging(group, down, set, clear);
  group.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -0.05, ArrowDown: 0.05 }[event.key];
    if (event.key === "Escape") clear();
    if (!step) return;
    event.preventDefault();
    const [low, high] = brushes.get(index) ?? [0, 0.25];
    const moved = brushes.has(index) ? Math.max(-low, Math.min(1 - high, step)) : 0;
    if (event.shiftKey) set(low, Math.max(low + 0.05, high + step));
    else set(low + moved, high + moved);
  });
  show();
  return group;
}

function dragging(group, down, set, clear) {
  let from = null;
  const share = (event) => {
    const root = group.ownerSVGElement;
    const box = root.getBoundingClientRect();
    const y = (event.clientY - box.top) * (root.viewBox.baseVal.height / box.height);
    return Math.max(0, Math.min(1, (y - down(0)) / (down(1) - down(0))));
  };
  group.addEventListener("pointerdown", (event) => {
    from = share(event);
    group.setPointerCapture(event.pointerId);
  });
  group.addEventListener("pointermove", (event) => {
    if (from !== null) set(Math.min(from, share(event)), Math.max(from, share(event)));
  });
  group.addEventListener("pointerup", (event) => {
    if (from !== null && Math.abs(share(event) - from) < 0.01) clear();
    from = null;
  });
  group.addEventListener("pointercancel", () => { from = null; });
}

function objectiveTint(report, runs) {
  const found = extent(runs.map((run) => run.objective), 0);
  return (run) => (found && run.objective !== null ? ramp((run.objective - found[0]) / (found[1] - found[0])) : "currentColor");
}

function ramp(share) {
  const place = Math.max(0, Math.min(1, share)) * (RAMP.length - 1);
  const index = Math.min(RAMP.length - 2, Math.floor(place));
  const mixed = RAMP[index].map((value, channel) => Math.round(value + (place - index) * (RAMP[index + 1][channel] - value)));
  return `rgb(${mixed.join(",")})`;
}

function rampKey(report, runs) {
  const values = runs.map((run) => run.objective).filter((value) => value !== null);
  if (!values.length) return html("p", { class: "note" }, "No run has an objective to be colored by.");
  const bars = Array.from({ length: 40 }, (_, index) => svg("rect", { x: index * 3, width: 3.2, height: 8, fill: ramp(index / 39) }));
  return html("p", { class: "key" }, html("span", {}, `${report.objective} ${number(Math.min(...values))}`,
    svg("svg", { viewBox: "0 0 120 8", width: 120, height: 8, "aria-hidden": "true" }, bars), number(Math.max(...values))));
}
