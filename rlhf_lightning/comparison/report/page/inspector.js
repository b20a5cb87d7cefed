// Reading a chart point by point: with the pointer, by touch, or with the arrow keys.

const REACH = 40;

/**
 * `series` is a list of lists of points {x, y, lines}, x and y in the units of the root's viewBox; the first line is
 * the heading. Left and right walk along a series, up and down change it, Escape leaves.
 */
function inspect(root, series) {
  const tooltip = document.getElementById("tooltip");
  const ring = svg("circle", { r: 7, class: "ring", visibility: "hidden" });
  const filled = series.filter((points) => points.length);
  let place = null;
  let current = null;
  root.append(ring);
  root.setAttribute("tabindex", "0");

  const leave = () => {
    current = null;
    tooltip.hidden = true;
    ring.setAttribute("visibility", "hidden");
  };
  const visit = (point) => {
    current = point;
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    ring.setAttribute("visibility", "visible");
    const [heading, ...rest] = point.lines;
    tooltip.replaceChildren(html("strong", {}, heading), ...rest.map((line) => html("div", {}, line)));
    tooltip.hidden = false;
    const box = root.getBoundingClientRect();
    const zoom = box.width / root.viewBox.baseVal.width;
    const x = box.left + point.x * zoom;
    const y = box.top + point.y * zoom;
    const left = x + 14 + tooltip.offsetWidth > innerWidth ? x - 14 - tooltip.offsetWidth : x + 14;
    tooltip.style.left = `${Math.max(4, Math.min(left, innerWidth - tooltip.offsetWidth - 4))}px`;
    tooltip.style.top = `${Math.max(4, Math.min(y - tooltip.offsetHeight / 2, innerHeight - tooltip.offsetHeight - 4))}px`;
  };
  const stay = () => {
    if (current === null) return;
    const box = root.getBoundingClientRect();
    if (!root.isConnected || box.bottom < 0 || box.top > innerHeight) leave();
    else visit(current);
  };
  const nearest = (event) => {
    const box = root.getBoundingClientRect();
    const zoom = box.width / root.viewBox.baseVal.width;
    const x = (event.clientX - box.left) / zoom;
    const y = (event.clientY - box.top) / zoom;
    let best = null;
    let least = REACH ** 2;
    for (const points of filled) {
      for (const point of points) {
        const away = (point.x - x) ** 2 + (point.y - y) ** 2;
        if (away < least) [best, least] = [point, away];
      }
    }
    return best;
  };
  const follow = (event) => {
    const point = nearest(event);
    if (point) visit(point);
    else leave();
  };
  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const walk = (event) => {
    if (event.target !== root) return;
    if (event.key === "Escape") leave();
    if (!(event.key in STEPS) || !filled.length) return;
    event.preventDefault();
    const [across, along] = STEPS[event.key];
    if (place === null) place = [0, 0];
    else place = [(place[0] + across + filled.length) % filled.length, place[1] + along];
    place[1] = Math.max(0, Math.min(place[1], filled[place[0]].length - 1));
    // Who walks may be anywhere on the page; a smooth scroll would pass places where the chart is not to be seen.
    root.scrollIntoView({ block: "nearest", behavior: "instant" });
    visit(filled[place[0]][place[1]]);
  };
  root.addEventListener("pointermove", follow);
  root.addEventListener("pointerdown", follow);
  root.addEventListener("pointerleave", leave);
  root.addEventListener("keydown", walk);
  root.addEventListener("blur", leave);
  addEventListener("scroll", stay, { passive: true });
}
