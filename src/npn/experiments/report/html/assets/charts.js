"use strict";
// Curves: one chart per box. Hovering over one shows the same epoch in all; arrow keys do the same.
const CURVES = (DATA.charts || []).map((spec) => ({ spec, box: document.getElementById("chart-" + spec.id) }));

function drawCurves() {
  for (const { spec, box } of CURVES)
    Plotly.react(box, coloured(spec.data), layout(spec.layout), CONFIG);
}

// Shows one epoch in all charts over epochs, or none for null. Plotly reports no hover that is made here.
function point(x, from) {
  for (const { spec, box } of CURVES) {
    if (box === from || spec.alone) continue;
    if (x === null) Plotly.Fx.unhover(box);
    else Plotly.Fx.hover(box, spec.layout.hovermode === "closest" ? nearest(spec, x) : { xval: x }, "xy");
  }
}

// The first line that has a number there.
function nearest(spec, x) {
  for (const [curveNumber, trace] of spec.data.entries()) {
    const pointNumber = trace.x.indexOf(x);
    if (pointNumber >= 0 && trace.y[pointNumber] !== null) return [{ curveNumber, pointNumber }];
  }
  return [];
}

function zoom(range, from) {
  for (const { spec, box } of CURVES) {
    if (box === from || spec.alone) continue;
    const now = box.layout.xaxis;
    if (range ? now.autorange || now.range[0] !== range[0] || now.range[1] !== range[1] : !now.autorange)
      Plotly.relayout(box, range ? { "xaxis.range": range } : { "xaxis.autorange": true });
  }
}

function listen({ spec, box }) {
  if (spec.alone) return;
  let position = -1;
  box.on("plotly_hover", (event) => point(event.points[0].x, box));
  box.on("plotly_unhover", () => point(null, box));
  box.on("plotly_relayout", (change) => {
    if ("xaxis.range[0]" in change) zoom([change["xaxis.range[0]"], change["xaxis.range[1]"]], box);
    else if ("xaxis.range" in change) zoom(change["xaxis.range"], box);
    else if (change["xaxis.autorange"]) zoom(null, box);
  });
  box.addEventListener("keydown", (event) => {
    const xs = spec.data[0].x, page = Math.max(1, Math.round(xs.length / 10));
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -page, PageDown: page, Home: -xs.length, End: xs.length }[event.key];
    if (!step) return;
    event.preventDefault();
    position = Math.min(xs.length - 1, Math.max(0, position < 0 && step > 0 && step < xs.length ? 0 : position + step));
    point(xs[position], null);
    const values = spec.data.map((trace) => trace.name + " " + (trace.text || trace.y)[position]);
    document.getElementById("reading").textContent = "epoch " + xs[position] + ": " + values.join(", ");
  });
  box.addEventListener("blur", () => point(null, null));
}

drawCurves();
CURVES.forEach(listen);
DARK.addEventListener("change", drawCurves);
