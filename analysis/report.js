// The report's page at work: figures, legends, switches, tables that sort (analysis/report.py puts it into the page).
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];
const DASHES = {dash: "7 4", dot: "2 3", dashdot: "7 3 2 3"};
// The tool bar of a figure stands in the margin above it, and shrinks to the few tools that a phone has room for.
const SMALL = matchMedia("(max-width: 40rem)").matches;
// The page asks nobody: plotly's button that would upload a figure goes.
const CONFIG = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", ...(SMALL ? ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d"] : [])]};
for (const plot of plots) {
  const panel = figures[plot.dataset.figure][plot.dataset.panel];
  const layout = {...panel.layout, margin: {l: 62, r: 12, t: 36, b: 44}, hovermode: "closest",
    font: {size: 12}, showlegend: false, paper_bgcolor: "#fff", plot_bgcolor: "#fff"};
  layout.xaxis = {...layout.xaxis, gridcolor: "#e4e4e4"};
  layout.yaxis = {...layout.yaxis, gridcolor: "#e4e4e4", zerolinecolor: "#888"};
  Plotly.newPlot(plot, panel.data, layout, CONFIG);
}
// One legend a figure, for all its panels.
for (const box of document.querySelectorAll(".legend")) {
  const mine = plots.filter(plot => plot.dataset.figure === box.dataset.figure), seen = new Set();
  for (const trace of mine.flatMap(plot => plot.data)) {
    if (!trace.legendgroup || trace.showlegend === false || seen.has(trace.legendgroup)) continue;
    seen.add(trace.legendgroup);
    const button = document.createElement("button"), colour = trace.marker?.color ?? trace.line.color;
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.innerHTML = trace.mode === "markers" ? `<svg width="14" height="10"><circle cx="7" cy="5" r="4" fill="${colour}"/></svg>`
      : `<svg width="26" height="10"><path d="M0 5H26" stroke="${colour}" stroke-width="2" stroke-dasharray="${DASHES[trace.line.dash] ?? ""}"/></svg>`;
    button.append(trace.legendgroup);
    button.addEventListener("click", () => { button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true"); show(); });
    box.append(button);
  }
}
// A line is shown where every key it has is switched on, and its figure's legend; a line without a key is not concerned by it.
const boxes = [...document.querySelectorAll(".switches input")];
function show() {
  const on = {};
  for (const box of boxes) { (on[box.dataset.key] ??= new Set()); if (box.checked) on[box.dataset.key].add(box.value); }
  for (const plot of plots) {
    const off = new Set([...plot.closest("figure").querySelectorAll("[aria-pressed=false]")].map(button => button.textContent));
    const visible = plot.data.map(trace => !off.has(trace.legendgroup) &&
      Object.entries(trace.meta ?? {}).every(([key, value]) => !on[key] || on[key].has(value)));
    if (visible.length) Plotly.restyle(plot, {visible: visible});
  }
}
show();
boxes.forEach(box => box.addEventListener("change", show));
function sort(head) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = row => { const text = row.cells[column].textContent, number = parseFloat(text.replace("−", "-")); return [Number.isNaN(number), number, text]; };
  const rows = [...body.rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => a[0] !== b[0] ? a[0] - b[0] : down * (a[0] ? a[2].localeCompare(b[2]) : a[1] - b[1]));
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
  body.append(...rows.map(([, row]) => row));
}
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => sort(button.closest("th"))));
