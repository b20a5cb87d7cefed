// Where the figures come from: what all jobs share once, then each job's own.

const LARGE_FAMILY = 15;

function provenanceSection(report, section) {
  if (!report.runs.length) {
    add(section, absence("There is no run to tell of."));
    return;
  }
  const names = [...new Set(report.runs.flatMap((run) => Object.keys(run.facts)))];
  const values = (name) => new Set(report.runs.map((run) => run.facts[name] ?? "not recorded"));
  const common = names.filter((name) => values(name).size === 1);
  const own = names.filter((name) => values(name).size > 1);
  const all = report.runs.length === 1 ? "This job" : `All ${report.runs.length} jobs`;
  if (common.length) add(section, html("h3", {}, all), ...facts(common.map((name) => [name, [...values(name)][0]])));
  add(section, html("h3", {}, "Each job"), ...report.runs.map((run) => html("details", { class: "job" },
    html("summary", {}, html("span", {}, run.name), html("span", { class: `state ${run.state}` }, run.state), html("span", { class: "note" }, toldApart(run))),
    facts([
      ["directory", run.directory], ["typed", run.overrides.join(" ") || "nothing"], ["started", run.started ?? "–"], ["took", duration(run.seconds)],
      ...(run.reused.length ? [["stages from the cache", run.reused.join(", ")]] : []),
      ...(run.error ? [["error", run.error]] : []), ...(run.problems.length ? [["could not be read", run.problems.join("; ")]] : []),
      ...own.map((name) => [name, run.facts[name] ?? "not recorded"])]))));
}

/** What tells a job from the others. */
function toldApart(run) {
  const settings = Object.entries(run.settings).map(([key, value]) => `${key}=${value}`);
  return [...settings, ...(run.seed === null ? [] : [`seed=${run.seed}`])].join(" ");
}

/** Names and texts. A large family of names (`installed.*`) is folded away. */
function facts(pairs) {
  const families = new Map();
  for (const pair of pairs) {
    const family = pair[0].split(".")[0];
    families.set(family, [...(families.get(family) ?? []), pair]);
  }
  const list = (chosen) => html("dl", {}, chosen.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
  const large = [...families].filter(([, members]) => members.length > LARGE_FAMILY);
  const small = [...families.values()].filter((members) => members.length <= LARGE_FAMILY).flat();
  return [list(small), ...large.map(([family, members]) => html("details", { class: "family" }, html("summary", {}, `${family}: ${members.length} entries`), list(members)))];
}
