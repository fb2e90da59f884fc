"use strict";
// Data of the page, and colours by the names that the style gives them.
const DATA = JSON.parse(document.getElementById("data").textContent);
const DARK = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// The same value with every "--name" in it replaced by the colour of that name.
function coloured(value) {
  if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each)]));
  return value;
}

function axis(own) {
  const title = { font: { size: 11 }, standoff: 4, ...(own || {}).title };
  return {
    gridcolor: colour("--grid"), linecolor: colour("--rule"), zeroline: false, automargin: true, tickfont: { size: 11 },
    tickangle: 0,
    ...coloured(own || {}), title,
  };
}

function layout(own) {
  return {
    ...coloured(own),
    paper_bgcolor: colour("--panel"), plot_bgcolor: colour("--panel"), dragmode: "zoom",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--soft") },
    margin: { l: 44, r: 18, t: own.showlegend ? 26 : 10, b: 36 },
    legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { size: 12 } },
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--rule"), font: { color: colour("--ink"), size: 12 } },
    xaxis: axis(own.xaxis),
    yaxis: axis(own.yaxis),
  };
}

// Contents, from the sections that are there.
for (const title of document.querySelectorAll("main section > h2")) {
  const link = document.createElement("a");
  link.href = "#" + title.parentElement.id;
  link.textContent = title.textContent;
  document.getElementById("contents").append(link);
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // a page from disk may not write to the clipboard
      button.textContent = "Selected";
    }
  });
}
