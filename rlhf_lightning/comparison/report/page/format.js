// Numbers as people read them.

/** `style` is a metric's: signed, percent, plain or figure. */
function number(value, style = "figure") {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (style === "percent") return `${(100 * value).toFixed(1)}%`;
  if (size === 0) return style === "signed" ? "0.00" : "0";
  if (size >= 1e6 || size < 5e-4) return value.toExponential(1);
  if (style === "signed") return `${value > 0 ? "+" : ""}${value.toFixed(2)}`;
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
}

/** A tick of an axis: as short as it can be. */
function tick(value, style = "figure") {
  if (style === "percent") return `${tick(100 * value)}%`;
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e6 || size < 1e-3) ? value.toExponential() : String(Number(value.toPrecision(6)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A label `gold reward, iid` as ["gold reward", "iid"]. */
function parted(label) {
  const at = label.indexOf(", ");
  return at < 0 ? [label, ""] : [label.slice(0, at), label.slice(at + 2)];
}

/** A text that fits `most` letters. */
function shortened(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

function count(amount, noun) {
  return `${amount} ${noun}${amount === 1 ? "" : "s"}`;
}
