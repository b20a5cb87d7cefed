// Learning curves: a line a group, the mean over the seeds that finished. The others would end the line where they end.

function curveSection(report, section) {
  if (!report.curves.length) {
    add(section, absence("None of these runs has a history.csv with figures."));
    return;
  }
  const state = { curve: 0, axis: "", spread: "range", window: 1 };
  const chart = canvas((width) => curveChart(report, state, width));
  const set = (key, read = (value) => value) => (value) => {
    state[key] = read(value);
    axes();
    chart.redraw();
  };
  const names = new Map();
  report.curves.forEach((curve, index) => names.set(curve.stage, [...(names.get(curve.stage) ?? []), [String(index), curve.name]]));
  const where = html("span");
  const axes = () => {
    const has = hasEpisodes(report, state.curve);
    if (!state.axis || (!has && state.axis === "episodes")) state.axis = has ? "episodes" : "step";
    const options = [...(has ? [["episodes", "episodes"]] : []), ["step", "optimizer steps"]];
    where.replaceChildren(choice("Along", options, state.axis, set("axis")));
  };
  axes();
  add(section,
    html("div", { class: "controls" },
      choice("Metric", [...names], "0", set("curve", Number)), where,
      choice("Seeds", [["range", "their range"], ["each", "each a thin line"], ["mean", "the mean alone"]], state.spread, set("spread")),
      choice("Smoothing", [["1", "none"], ["5", "over 5 points"], ["15", "over 15 points"]], "1", set("window", Number))),
    legend(report.groups, chart.redraw), chart.box,
    html("p", { class: "note" }, `A line is the mean over a group's finished runs, drawn where all of them have a point. ${report.runs.every((run) => run.finished) ? "" : "Thin dotted lines are runs that did not finish. "}${report.curve_note}`));
}

function hasEpisodes(report, curve) {
  return report.runs.some((run) => report.grids[run.series[curve]?.[0]]?.episodes);
}

function curvesOf(report, group, state) {
  return group.runs.map((index) => report.runs[index]).filter((run) => run.series[state.curve]).map((run) => {
    const [grid, values] = run.series[state.curve];
    return { x: report.grids[grid][state.axis] ?? report.grids[grid].step, y: smooth(values, state.window), run };
  });
}

function curveChart(report, state, width) {
  const { stage, name } = report.curves[state.curve];
  const lines = report.groups.map((group, index) => ({ group, index, curves: curvesOf(report, group, state) }))
    .filter(({ index, curves }) => shown.has(index) && curves.length)
    .map(({ group, index, curves }) => {
      const finished = curves.filter(({ run }) => run.finished);
      return { group, index, curves: finished.length ? finished : curves, rest: finished.length ? curves.filter(({ run }) => !run.finished) : [] };
    })
    .map((line) => ({ ...line, mean: meanCurve(line.curves) }));
  const all = lines.flatMap(({ curves, rest }) => [...curves, ...rest]);
  const x = extent(all.flatMap((curve) => curve.x), 0.01);
  const y = extent(state.spread === "mean" && lines.some(({ mean }) => mean.length) ? lines.flatMap(({ mean }) => mean.map((point) => point.mean)) : all.flatMap((curve) => curve.y));
  if (!x || !y) return absence(shown.size ? `The groups shown did not log ${name}.` : "No group is chosen: choose one above.");
  const { root, across, up } = frame(width, {
    x: { low: x[0], high: x[1], label: state.axis === "episodes" ? "episodes" : "optimizer steps" }, y: { low: y[0], high: y[1], label: name },
    title: `${name} of ${stage}`,
    description: lines.map(({ group, mean, curves }) => mean.length ? `${group.name} ends at ${number(mean.at(-1).mean)}` : `${group.name}: ${count(curves.length, "run")}`).join("; "),
  });
  const reading = lines.map((line) => drawLine(root, line, state, across, up, name));
  inspect(root, reading);
  return root;
}

function drawLine(root, { group, index, curves, rest, mean }, state, across, up, name) {
  const layer = svg("g", { class: seriesClass(index), "data-group": index });
  const several = curves.length > 1;
  const at = (points, field) => points.map((point) => [across(point.x), up(point[field])]);
  if (several && state.spread === "range" && mean.length) {
    layer.append(svg("path", { class: "band", d: `${trace(at(mean, "high"))}${trace(at([...mean].reverse(), "low")).replace("M", "L")}Z` }));
  }
  const thin = (curve, kind) => layer.append(svg("path", { class: kind, d: trace(curve.x.map((x, i) => [across(x), curve.y[i] === null ? null : up(curve.y[i])])) }));
  if (several && (state.spread === "each" || !mean.length)) curves.forEach((curve) => thin(curve, "thin"));
  if (state.spread !== "mean") rest.forEach((curve) => thin(curve, "thin unfinished"));
  const points = at(mean, "mean");
  layer.append(svg("path", { class: "line", d: trace(points) }), ...markersAlong(points, index));
  root.append(layer);
  return mean.map((point, i) => ({ x: points[i][0], y: points[i][1], lines: [
    group.name, `${name} ${number(point.mean)}`, ...(several ? [`${number(point.low)} to ${number(point.high)} over ${curves.length} runs`] : []),
    `${state.axis === "episodes" ? "episode" : "step"} ${Math.round(point.x)}`] }));
}
