// Several runs of a group as one line.

/**
 * The mean of several curves {x: [...], y: [...]} where all of them have a point, with their range:
 * [{x, mean, low, high}]. A mean over fewer seeds would jump where one ends.
 */
function meanCurve(curves) {
  const values = new Map();
  for (const { x, y } of curves) {
    x.forEach((position, index) => {
      if (y[index] === null) return;
      if (!values.has(position)) values.set(position, []);
      values.get(position).push(y[index]);
    });
  }
  return [...values]
    .filter(([, found]) => found.length === curves.length)
    .sort(([one], [other]) => one - other)
    .map(([x, found]) => ({
      x, mean: found.reduce((sum, value) => sum + value, 0) / found.length, low: Math.min(...found), high: Math.max(...found),
    }));
}

/** The running mean over `window` points around each point; fewer at the ends. */
function smooth(values, window) {
  if (window < 2) return values;
  const half = Math.floor(window / 2);
  return values.map((value, index) => {
    const near = values.slice(Math.max(0, index - half), index + half + 1).filter((other) => other !== null);
    return value === null ? null : near.reduce((sum, other) => sum + other, 0) / near.length;
  });
}
