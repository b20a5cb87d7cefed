// From values to pixels, and where the ticks of an axis go.

/** `low` and `high` become `start` and `end`; a logarithmic scale needs positive values. */
function scale(low, high, start, end, logarithmic = false) {
  const of = logarithmic ? Math.log10 : (value) => value;
  const span = of(high) - of(low);
  const at = (value) => start + (span === 0 ? 0.5 : (of(value) - of(low)) / span) * (end - start);
  at.ticks = (wanted) => (logarithmic ? decades(low, high) : roundTicks(low, high, wanted));
  return at;
}

/** Multiples of 1, 2 or 5 times a power of ten, about `wanted` of them. */
function roundTicks(low, high, wanted) {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= raw) ?? 10);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) ticks.push(index * step);
  return ticks;
}

function decades(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push(value);
    }
  }
  return ticks;
}

/** The smallest and largest of the finite values, with a little air; null where there are none. */
function extent(values, air = 0.04) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return null;
  const margin = high > low ? (high - low) * air : Math.abs(high) * 0.1 || 0.5;
  return [low - margin, high + margin];
}
