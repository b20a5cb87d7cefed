// The same prompts answered before and after training, job by job.

function sampleSection(report, section) {
  const runs = report.runs.map((run, index) => ({ run, index })).filter(({ run }) => run.samples.length);
  if (!runs.length) {
    add(section, absence("None of these runs has a samples.jsonl: no evaluate stage has finished."));
    return;
  }
  const place = html("div", { id: "sample-list" });
  const draw = (value) => {
    const run = report.runs[Number(value)];
    place.replaceChildren(...run.samples.map(sampleCard));
  };
  const best = report.groups.flatMap((group) => group.runs).find((index) => report.runs[index].samples.length) ?? runs[0].index;
  const options = report.groups.map((group) => [group.name, group.runs.filter((index) => report.runs[index].samples.length).map((index) => [String(index), jobName(report.runs[index])])])
    .filter(([, jobs]) => jobs.length);
  add(section, html("div", { class: "controls" }, choice("Job", options, String(best), draw)), place);
  draw(best);
}

function jobName(run) {
  return [run.name, run.seed === null ? null : `seed ${run.seed}`, run.objective === null ? null : `objective ${number(run.objective)}`].filter(Boolean).join(", ");
}

function sampleCard(sample) {
  const response = (heading, text, gold, proxy) => html("div", { class: "response" }, html("h4", {}, heading), html("p", {}, text),
    html("p", { class: "note" }, [gold === null ? null : `gold ${number(gold, "signed")}`, proxy === null ? null : `proxy ${number(proxy, "signed")}`].filter(Boolean).join(", ")));
  return html("article", { class: "sample" },
    html("p", { class: "prompt" }, html("span", { class: "split" }, sample.split), html("span", {}, sample.prompt)),
    html("div", { class: "pair" }, response("Before", sample.before, sample.gold_before, sample.proxy_before), response("After", sample.after, sample.gold_after, sample.proxy_after)));
}
