"use strict";
// Architecture and gates at one epoch; two sliders that move together.
const MOMENTS = DATA.moments;

function scaleOf(layer) {
  const chosen = document.querySelector("input[name=scale]:checked").value;
  return chosen === "share" ? layer.most : Math.max(...MOMENTS.layers.filter((each) => each.unit === layer.unit).map((each) => each.most));
}

function drawLayers(moment) {
  const rows = document.getElementById("layers").children;
  MOMENTS.layers.forEach((layer, index) => {
    const row = rows[index], now = layer.units[moment], whole = scaleOf(layer) || 1;
    row.querySelector(".now").style.width = (100 * now) / whole + "%";
    row.querySelector(".before").style.width = (100 * layer.start) / whole + "%";
    row.classList.toggle("gone", now === 0);
    const bold = document.createElement("b");
    bold.textContent = now.toLocaleString("en-US");
    row.querySelector(".count").replaceChildren(bold, " of " + layer.most.toLocaleString("en-US"));
  });
}

// Many layers: one line of a heat map for each. Colours go by the root of the shares, so that few units are seen, too.
function drawAllGates(moment) {
  const names = Object.keys(MOMENTS.keep), bins = Math.max(1, ...names.map((name) => MOMENTS.keep[name][moment].length));
  const gone = names.map((name) => [MOMENTS.absent[name][moment]]), open = names.map((name) => MOMENTS.keep[name][moment]);
  const whole = names.map((_, i) => [...gone[i], ...open[i]].reduce((sum, n) => sum + n, 0) || 1);
  const ends = Array.from({ length: bins + 1 }, (_, i) => i / bins);
  const map = (counts, x, shade, place) => ({
    type: "heatmap", x, y: names, z: counts.map((each, i) => each.map((n) => Math.sqrt(n / whole[i]))), zmin: 0, zmax: 1,
    xgap: 1, ygap: 2, showscale: false, colorscale: [[0, colour("--track")], [1, colour(shade)]],
    text: counts.map((each) => each.map((n, j) => n.toLocaleString("en-US") + " units " + place(j))),
    hovertemplate: "%{y}: %{text}<extra></extra>",
  });
  const at = (j) => "at " + Math.round(100 * ends[j]) + "–" + Math.round(100 * ends[j + 1]) + "%";
  const maps = [map(gone, [-4 / bins, -3 / bins], "--soft", () => "are gone"), map(open, ends, "--blue", at)];
  const ticks = { tickvals: [-3.5 / bins, 0, 0.5, 1], ticktext: ["gone", "0", "½", "1"], showgrid: false, fixedrange: true };
  const own = { xaxis: ticks, yaxis: { autorange: "reversed", showgrid: false, fixedrange: true, tickmode: "linear" }, hovermode: "closest" };
  Plotly.react("all-gates", maps, { ...layout(own), margin: { l: 10, r: 6, t: 8, b: 22 }, dragmode: false }, CONFIG);
}

function drawGates(moment) {
  if (document.getElementById("all-gates")) return drawAllGates(moment);
  Object.keys(MOMENTS.keep).forEach((name, index) => {
    const counts = MOMENTS.keep[name][moment], bins = counts.length || 1;
    const ends = counts.map((_, i) => Math.round((100 * i) / bins) + "–" + Math.round((100 * (i + 1)) / bins) + "%");
    const bars = {
      type: "bar", x: counts.map((_, i) => (i + 0.5) / bins), y: counts, width: 0.9 / bins, customdata: ends,
      marker: { color: colour("--blue") }, hovertemplate: "%{y:,} units at %{customdata}<extra></extra>",
    };
    const gone = {
      type: "bar", x: [-0.15], y: [MOMENTS.absent[name][moment]], width: 0.07,
      marker: { color: colour("--before") }, hovertemplate: "%{y:,} units are gone<extra></extra>",
    };
    const ticks = { range: [-0.22, 1.02], tickvals: [-0.15, 0, 0.5, 1], ticktext: ["gone", "0", "½", "1"], showgrid: false, fixedrange: true };
    const own = { xaxis: ticks, yaxis: { rangemode: "tozero", nticks: 4, fixedrange: true, tickformat: ",d" }, showlegend: false, hovermode: "closest" };
    const whole = { ...layout(own), margin: { l: 36, r: 6, t: 8, b: 22 }, dragmode: false };
    Plotly.react("gate-" + index, [gone, bars], whole, CONFIG);
  });
}

function show(moment) {
  for (const slider of document.querySelectorAll(".moment")) {
    slider.value = moment;
    slider.setAttribute("aria-valuetext", MOMENTS.captions[moment]);
  }
  for (const caption of document.querySelectorAll(".caption")) caption.textContent = MOMENTS.captions[moment];
  drawLayers(moment);
  drawGates(moment);
}

if (MOMENTS) {
  const first = document.querySelector(".moment");
  for (const slider of document.querySelectorAll(".moment"))
    slider.addEventListener("input", () => show(Number(slider.value)));
  for (const button of document.querySelectorAll("[data-moment]"))
    button.addEventListener("click", () => show(Number(button.dataset.moment)));
  for (const radio of document.querySelectorAll("input[name=scale]"))
    radio.addEventListener("change", () => drawLayers(Number(first.value)));
  DARK.addEventListener("change", () => show(Number(first.value)));
  show(Number(first.value));
}
