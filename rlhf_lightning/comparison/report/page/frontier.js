// What a distance from the reference buys: the reward under training and the true one against sqrt(KL).
// Axes as in Gao, Schulman and Hilton 2022 (arXiv 2210.10760).

const REWARDS = { gold: "gold reward", proxy: "proxy reward" };

function frontierSection(report, section) {
  const runs = report.runs.filter((run) => run.path || run.ends.length);
  if (!runs.length) {
    add(section, absence("No finished run here trained against a reward with a KL to a reference (a PPO stage), so there is nothing to draw."));
    return;
  }
  const gold = runs.some((run) => run.path?.gold || run.ends.some((end) => end.gold !== null));
  const splits = [...new Set(runs.flatMap((run) => run.ends.map((end) => end.split)))];
  const state = { rewards: gold ? ["gold", "proxy"] : ["proxy"], split: splits.includes("iid") ? "iid" : splits[0] ?? "" };
  const chart = canvas((width) => frontierChart(report, state, width));
  const choose = (value) => {
    state.rewards = value.split(",");
    chart.redraw();
  };
  const ends = (value) => {
    state.split = value;
    chart.redraw();
  };
  add(section,
    html("div", { class: "controls" },
      gold ? choice("Rewards", [["gold,proxy", "gold and proxy"], ["gold", "gold alone"], ["proxy", "proxy alone"]], "gold,proxy", choose) : null,
      splits.length ? choice("End points measured on", splits.map((split) => [split, split]), state.split, ends) : null),
    legend(report.groups, chart.redraw), lineKey(gold), chart.box,
    gold ? null : absence("These runs have no gold reward (only the embedded world does), so whether the proxy was over-optimized cannot be seen here."),
    html("p", { class: "note" }, `${gold ? "Proxy up while gold comes down is over-optimization. " : ""}${report.path_note}`));
}

function lineKey(gold) {
  const stroke = (kind) => svg("svg", { viewBox: "0 0 28 16", width: 28, height: 16, "aria-hidden": "true" }, svg("line", { class: `line ${kind}`, x1: 0, x2: 28, y1: 8, y2: 8 }));
  const entry = (kind, text) => html("span", {}, stroke(kind), text);
  return html("p", { class: "key" }, gold ? entry("gold", "gold reward") : null, entry("proxy", "proxy reward"));
}

function frontierChart(report, state, width) {
  const lines = report.groups.map((group, index) => ({ group, index, runs: group.runs.map((at) => report.runs[at]) })).filter(({ index }) => shown.has(index));
  const parts = lines.flatMap(({ group, index, runs }) => state.rewards.map((reward) => ({
    group, index, reward,
    path: meanPath(runs.map((run) => run.path).filter((path) => path?.[reward]), reward),
    ends: runs.flatMap((run) => run.ends.filter((end) => end.split === state.split && end[reward] !== null).map((end) => ({ ...end, run }))),
  })));
  const places = parts.flatMap(({ path, ends, reward }) => [...path, ...ends.map((end) => ({ distance: end.distance, value: end[reward] }))]);
  const x = extent(places.map((place) => place.distance).concat(0));
  const y = extent(places.map((place) => place.value));
  if (!y) return absence(shown.size ? "The groups shown have no reward with a KL beside it." : "No group is chosen: choose one above.");
  const { root, across, up } = frame(width, {
    x: { low: 0, high: x[1], label: "√KL to the reference, √nats a response" }, y: { low: y[0], high: y[1], label: state.rewards.length > 1 ? "reward" : REWARDS[state.rewards[0]] },
    title: "Rewards against the square root of the KL",
    description: parts.filter(({ path }) => path.length).map(({ group, reward, path }) => `${group.name}: ${REWARDS[reward]} ends at ${number(path.at(-1).value)}`).join("; "),
  });
  inspect(root, parts.flatMap((part) => drawPath(root, part, across, up)));
  return root;
}

/** The mean way of several runs: distance and reward averaged at the steps that all of them have. */
function meanPath(paths, reward) {
  if (!paths.length) return [];
  const values = meanCurve(paths.map((path) => ({ x: path.step, y: path[reward] })));
  const distances = new Map(meanCurve(paths.map((path) => ({ x: path.step, y: path.distance }))).map((point) => [point.x, point.mean]));
  return values.filter((point) => distances.has(point.x)).map((point) => ({ step: point.x, distance: distances.get(point.x), value: point.mean }));
}

function drawPath(root, { group, index, reward, path, ends }, across, up) {
  const layer = svg("g", { class: seriesClass(index), "data-group": index });
  layer.append(svg("path", { class: `line ${reward}`, d: trace(path.map((point) => [across(point.distance), up(point.value)])) }));
  for (const end of ends) layer.append(marker(index, across(end.distance), up(end[reward]), { size: end.distance === 0 ? 0.8 : 1.4, hollow: reward === "proxy" }));
  root.append(layer);
  const along = path.map((point) => ({ x: across(point.distance), y: up(point.value), lines: [
    group.name, `${REWARDS[reward]} ${number(point.value)}`, `√KL ${number(point.distance)}`, `optimizer step ${Math.round(point.step)}`] }));
  const last = ends.map((end) => ({ x: across(end.distance), y: up(end[reward]), lines: [
    `${end.run.name}: ${end.policy} on ${end.split}`, group.name, `${REWARDS[reward]} ${number(end[reward])}`, `√KL ${number(end.distance)}`] }));
  return [along, last];
}
