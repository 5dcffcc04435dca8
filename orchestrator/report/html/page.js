"use strict";

// Draws the figures that the page holds, in the browser's colours, and sorts its table. Needs Plotly, and no network.

const sections = JSON.parse(document.getElementById("sections").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg" } };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function themed(figure, logarithmic) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  const layout = {
    margin: { l: 60, r: 20, t: 30, b: 50 },
    ...figure.layout,
    font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    xaxis: { ...axis, ...figure.layout.xaxis },
    yaxis: { ...axis, ...figure.layout.yaxis, ...(logarithmic ? { type: "log" } : {}) },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line"), activecolor: colour("soft") },
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") } },
  };
  const data = figure.data.map((trace) => {
    const font = { color: colour("ink"), size: 12 };
    if (trace.type !== "parcoords") return trace;
    return { ...trace, labelfont: { ...font, size: 13 }, tickfont: font, rangefont: { color: "rgba(0,0,0,0)" } };
  });
  return { data, layout };
}

function logarithmic(number) {
  const box = document.querySelector(`input[data-log="${number}"]`);
  return box !== null && box.checked;
}

async function draw(number) {
  const place = document.getElementById(`plots-${number}`);
  const chosen = document.querySelector(`select[data-section="${number}"]`).selectedIndex;
  const figures = sections[number].choices[chosen].figures;
  place.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot));
  place.replaceChildren();
  for (const figure of figures) {
    const plot = document.createElement("div");
    plot.className = figure.wide || figures.length === 1 ? "plot wide" : "plot";
    place.append(plot);
    const { data, layout } = themed(figure, logarithmic(number));
    await Plotly.newPlot(plot, data, layout, config);
  }
}

async function drawAll() {
  for (const number of sections.keys()) await draw(number);
  document.body.dataset.drawn = "yes";
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, ...key(row.cells[column]) }));
  rows.sort((a, b) => a.empty - b.empty || (up ? 1 : -1) * compare(a, b));
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

function key(cell) {
  const text = cell.textContent;
  const number = cell.dataset.order === undefined ? NaN : Number(cell.dataset.order);
  return { text, number, empty: text === "" || (cell.className === "number" && Number.isNaN(number)) };
}

function compare(a, b) {
  if (!Number.isNaN(a.number) && !Number.isNaN(b.number)) return a.number - b.number;
  return a.text.localeCompare(b.text);
}

document.querySelectorAll("select[data-section]").forEach((chooser) => {
  chooser.addEventListener("change", () => draw(Number(chooser.dataset.section)));
});
document.querySelectorAll("input[data-log]").forEach((box) => {
  box.addEventListener("change", () => draw(Number(box.dataset.log)));
});
document.querySelectorAll("th button").forEach((button) => {
  const head = button.parentElement;
  button.addEventListener("click", () => sort(head.closest("table"), head.cellIndex));
});
dark.addEventListener("change", drawAll);
drawAll();
