"use strict";
// Tables that are sorted by a click on a title, and the size that the frontier is drawn over.
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  titles.forEach((title, column) => title.querySelector("button").addEventListener("click", () => {
    const falling = title.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)], numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
      return numbers ? x - y : x.localeCompare(y);
    };
    const rows = [...body.rows].sort((a, b) => (falling ? order(b, a) : order(a, b)));
    body.append(...rows);
    titles.forEach((each) => each.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }));
}

const over = document.getElementById("over");
if (over) over.addEventListener("change", () => {
  const frontier = CURVES.find(({ spec }) => spec.id === "frontier"), choice = frontier.spec.choices[over.value];
  frontier.spec.data = choice.data;
  frontier.spec.layout.xaxis = choice.xaxis;
  drawCurves();
});
