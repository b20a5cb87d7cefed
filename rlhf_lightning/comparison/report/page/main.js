// From the data in the page to the page.

const report = JSON.parse(document.getElementById("data").textContent);

document.getElementById("title").textContent = report.title;
document.getElementById("lead").textContent = report.lead;
document.getElementById("made").textContent = report.made;
document.getElementById("findings").append(...report.findings.map((finding) => html("li", {}, finding)));
document.getElementById("contents").append(...[...document.querySelectorAll("main > section")].map((section) => html("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));

startTheme(document.getElementById("theme"));
startSeries(report.groups, report.baseline);

const sections = { groups: groupTable, curves: curveSection, frontier: frontierSection, parallel: parallelSection, samples: sampleSection, provenance: provenanceSection };
for (const [id, draw] of Object.entries(sections)) draw(report, document.getElementById(id));
