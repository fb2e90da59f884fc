// Runs at the end of a page under test: uses it as people do, and sends what it finds to the page around it.
"use strict";
(async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const found = {};

  function hovered(box) {
    return [...box.querySelectorAll(".hoverlayer text")].map((each) => each.textContent).join(" ");
  }

  async function mouse(box, share) {
    const area = box.querySelector(".nsewdrag").getBoundingClientRect();
    const at = { clientX: area.left + share * area.width, clientY: area.top + area.height / 2, bubbles: true };
    for (const kind of ["mouseover", "mousemove"]) box.querySelector(".nsewdrag").dispatchEvent(new MouseEvent(kind, at));
    await pause(300);
  }

  function key(box, name) {
    box.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  }

  function contrast(element) {
    const light = (text) => {
      const part = text.match(/[\d.]+/g).slice(0, 3).map((n) => n / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
    };
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light).sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  }

  try {
    await pause(500);
    const charts = all(".chart[tabindex]"), curves = charts.filter((box) => box.id !== "chart-frontier");
    found.width = [document.documentElement.scrollWidth, document.documentElement.clientWidth, innerWidth];
    found.drawn = all(".chart").filter((box) => box.querySelector(".main-svg")).length === all(".chart").length;
    found.cut = all(".chart .xtick text, .chart .ytick text, .chart .legendtext").filter((each) => {
      const box = each.closest(".chart").getBoundingClientRect(), own = each.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
    }).map((each) => each.textContent);
    found.contrast = Math.min(...all("h1, .lead, .card p, .card strong, td, thead th, nav a, figcaption, .count").map(contrast));
    found.background = getComputedStyle(document.body).backgroundColor;
    found.resources = performance.getEntriesByType("resource").map((each) => each.name).filter((name) => !name.startsWith("data:"));

    await mouse(curves[0], 0.5);
    found.hover = hovered(curves[0]);
    found.linked = hovered(curves[1]);
    curves[0].focus();
    found.focused = document.activeElement === curves[0];
    key(curves[0], "Home");
    found.keyed = hovered(curves[0]); // at once: the other frames take the focus
    key(curves[0], "ArrowRight");
    found.reading = document.getElementById("reading").textContent;

    const sliders = all("input[type=range]");
    if (sliders.length) {
      const state = () => ({
        widths: all(".layers .now").map((bar) => bar.style.width), counts: all(".count").map((each) => each.textContent),
        captions: all(".caption").map((each) => each.textContent), values: sliders.map((each) => each.value),
        gone: document.getElementById("gate-0").data[0].y[0],
      });
      found.end = state();
      sliders[0].focus();
      found.sliderFocused = document.activeElement === sliders[0] && sliders[0].labels.length === 1;
      sliders[0].value = "0";
      sliders[0].dispatchEvent(new Event("input", { bubbles: true }));
      found.start = state();
      all("[data-moment]")[2].click();
      found.jumped = state();
      document.querySelector("input[value=count]").click();
      found.byCount = state();
    }
    const scrolls = all(".scroll");
    found.tables = scrolls.every((each) => each.tabIndex === 0 && each.getAttribute("aria-label"));
    const title = document.querySelector(".sortable th:nth-child(7) button");
    if (title) {
      const order = () => all(".sortable tbody tr").map((row) => row.cells[6].textContent);
      title.click();
      found.rising = order();
      title.click();
      found.falling = order();
      found.sort = title.parentElement.getAttribute("aria-sort");
      const over = document.getElementById("over"), box = document.getElementById("chart-frontier");
      found.xs = box.data[1].x;
      over.value = "macs";
      over.dispatchEvent(new Event("change"));
      found.over = [box.data[1].x, box.layout.xaxis.title.text, over.labels.length];
    }
  } catch (error) {
    problems.push("check: " + error.stack);
  }
  parent.postMessage(JSON.stringify({ ...found, problems }), "*");
})();
