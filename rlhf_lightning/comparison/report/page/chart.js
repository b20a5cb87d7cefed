// The frame of a chart with two axes, drawn at the width it has, and drawn again when that changes.

const MARGIN = { top: 12, right: 16, bottom: 46, left: 58 };

/** A box that calls `draw(width)` now and whenever its width changes, and shows the node that comes back. */
function canvas(draw) {
  const box = html("div", { class: "canvas" });
  let width = 0;
  const redraw = () => { if (width) box.replaceChildren(draw(width)); };
  new ResizeObserver(() => {
    const now = Math.round(box.clientWidth);
    if (now && now !== width) {
      width = now;
      redraw();
    }
  }).observe(box);
  return { box, redraw };
}

/** `x` and `y` are {low, high, label}. Returns the root and the scales of both axes. */
function frame(width, { x, y, title, description }) {
  const height = Math.round(Math.max(260, Math.min(420, width * 0.55)));
  const across = scale(x.low, x.high, MARGIN.left, width - MARGIN.right);
  const up = scale(y.low, y.high, height - MARGIN.bottom, MARGIN.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. ${description}` },
    svg("title", {}, title), svg("desc", {}, description));
  for (const value of up.ticks(5)) {
    root.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: up(value), y2: up(value) }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: up(value) + 4, "text-anchor": "end" }, tick(value)));
  }
  for (const value of across.ticks(Math.max(3, Math.round(width / 130)))) {
    root.append(svg("text", { class: "tick", x: across(value), y: height - MARGIN.bottom + 18, "text-anchor": "middle" }, tick(value)));
  }
  root.append(
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: height - MARGIN.bottom, y2: height - MARGIN.bottom }),
    svg("text", { class: "label", x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
    svg("text", { class: "label", transform: `translate(14,${(height - MARGIN.bottom + MARGIN.top) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label));
  return { root, across, up };
}

/** A path through points [x, y]; a missing y interrupts it. */
function trace(points) {
  let drawn = false;
  return points.map(([x, y]) => {
    if (x === null || y === null) {
      drawn = false;
      return "";
    }
    const command = drawn ? "L" : "M";
    drawn = true;
    return `${command}${x.toFixed(1)},${y.toFixed(1)}`;
  }).join("");
}

/** A few markers along a line, at other places for other groups, and always one at its end. */
function markersAlong(points, index) {
  const present = points.filter(([x, y]) => x !== null && y !== null);
  const stride = Math.max(1, Math.ceil(present.length / 5));
  const first = (index * 3) % stride;
  return present
    .filter((_, at) => at === present.length - 1 || (at % stride === first && present.length - 1 - at > stride / 3))
    .map(([x, y]) => marker(index, x, y));
}
