// The page: its sections in the order in which a reader asks, and the list of them.

function showPage() {
  const found = readDocument();
  const sections = [
    summarySection(found), new Curves(found.runs).section(), targetsSection(found), costsSection(found),
    sweepSection(found), domainsSection(found.runs), dynamicsSection(found), heatSection(found),
    runsSection(found.runs),
  ].filter(Boolean);
  document.querySelector("main").append(...sections);
  document.querySelector("nav").append(...sections.slice(1).map((part) =>
    element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
  document.querySelector("h1").textContent = found.title;
  const made = `Made by megaslm report (MegaSLM ${found.megaslm}) at ${found.written}.`;
  document.querySelector("footer").append(`${made} This page loads nothing from anywhere.`);
}

showPage();
