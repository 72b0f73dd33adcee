"use strict";
/* The figures, drawn by Observable Plot from the numbers of tables/points.csv for the judge, benchmark and decoder that the reader
   chooses. Without scripts, the page shows matplotlib's pictures instead. */

const POINTS = study.points.rows.map((row) => Object.fromEntries(study.points.columns.map((name, i) => [name, row[i]])));
const LABELS = Object.fromEntries(study.arms.map((arm) => [arm.name, arm.label]));
const STARTS = Object.fromEntries(study.arms.map((arm) => [arm.name, arm.start]));
const SYMBOLS = ["circle", "square", "triangle", "star", "cross", "wye"];
const CATEGORIES = Object.keys(study.categories);
const choice = { judge: "", benchmark: "", decoder: "" };
const percent = (value) => `${(value * 100).toFixed(1)}%`; // rounds ties as the tables do
const colour = (index) => (index < 0 ? "currentColor" : `var(--c${index % 9})`);
const DASHES = ["none", "6,3", "2,2", "6,3,2,3"]; // of lines whose colour repeats
const dashes = (index) => DASHES[Math.floor(Math.max(0, index) / 9) % DASHES.length];
const TICKS = Object.fromEntries(study.arms.map((arm) => [arm.start, arm.tick]));
const DARK = matchMedia("(prefers-color-scheme: dark)");
/** The opacity of a faint mark, which must be higher on a dark page. */
const faintly = (light, dark) => (DARK.matches ? dark : light);

/** The mark beside a label in the legend, as the panels draw it. `shape` is a kind of series or a symbol of Plot's. */
function swatch(ink, shape, isFaint, strength = 1, dash = "none") {
  const made = (tag, properties) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(properties)) part.setAttribute(name, value);
    return part;
  };
  const picture = made("svg", { viewBox: "-9 -6 18 12", width: 18, height: 12, "aria-hidden": "true", opacity: (isFaint ? 0.7 : 1) * strength });
  const lines = { line: "M-8,0H8", span: "M-8,0H8", whisker: "M0,-6V6", rule: "M0,-6V6" };
  if (shape in lines) picture.append(made("path", { d: lines[shape], stroke: ink, "stroke-width": isFaint ? 1 : 2, "stroke-dasharray": shape === "rule" ? "3,2" : dash }));
  else if (shape === "area") picture.append(made("path", { d: "M-6,-5H6V5H-6Z", fill: ink }));
  else {
    const symbol = d3[`symbol${shape[0].toUpperCase()}${shape.slice(1)}`] ?? d3.symbolCircle;
    const look = shape === "times" ? { stroke: ink, "stroke-width": 1.8, fill: "none" } : { fill: ink };
    picture.append(made("path", { d: d3.symbol(symbol, isFaint ? 20 : 56)(), ...look }));
  }
  return picture;
}

function chosen(place) {
  const decoder = choice.decoder && place.measure === "attack success" ? choice.decoder : place.place;
  return POINTS.filter((point) => point.judge === choice.judge && point.stage === place.stage && point.place === decoder);
}

/** Attack success or AUC over the start of interventions. */
function curvePanel(place) {
  const all = chosen(place).filter((point) => point.measure === place.measure);
  const isAuc = place.measure === "probe AUC";
  const shown = (value) => (isAuc ? value.toFixed(3) : percent(value));
  const main = isAuc ? all : all.filter((point) => point.benchmark === choice.benchmark);
  const behind = isAuc || choice.benchmark ? [] : all.filter((point) => point.benchmark);
  const marks = [Plot.ruleY([isAuc ? 0.5 : 0], { stroke: "var(--rule)" })];
  const used = [];
  const middle = (study.curves.length - 1) / 2;
  study.curves.forEach((curve, i) => {
    const shift = study.several ? (i - middle) * 0.022 : 0; // the wide intervals over seeds would cover each other
    const along = (points) => curve.arms.flatMap((arm) => points.filter((point) => point.arm === arm))
      .map((point) => ({ ...point, start: STARTS[point.arm] >= 1 ? 1 : STARTS[point.arm] + shift }));
    const points = along(main);
    if (!points.length) return;
    used.push([curve.label, colour(i), SYMBOLS[i % SYMBOLS.length]]);
    for (const name of new Set(behind.map((point) => point.benchmark))) {
      const faint = along(behind.filter((point) => point.benchmark === name));
      marks.push(Plot.lineY(faint, { x: "start", y: "value", stroke: colour(i), strokeOpacity: faintly(0.35, 0.55), strokeWidth: 1 }));
    }
    const banded = points.filter((point) => point.std !== null);
    marks.push(
      Plot.areaY(banded, { x: "start", y1: (p) => p.value - p.std, y2: (p) => p.value + p.std, fill: colour(i), fillOpacity: 0.18 }),
      Plot.lineY(points, { x: "start", y: "value", stroke: colour(i), strokeWidth: 2 }));
    marks.push(
      ...pointMarks(points.filter((point) => point.start < 1), colour(i), SYMBOLS[i % SYMBOLS.length]),
      ...pointMarks(points.filter((point) => point.start >= 1), "currentColor", "diamond2"));
    const details = (p) => [`${shown(p.value)}${p.low === null ? "" : ` (${shown(p.low)} to ${shown(p.high)})`}`,
      ...(p.corrected === null ? [] : [`corrected for the judge: ${shown(p.corrected)}`]), ...(p.runs ? [`runs: ${p.runs}`] : [])];
    marks.push(Plot.tip(points, Plot.pointer({ x: "start", y: "value", title: (p) => [LABELS[p.arm], ...details(p)].join("\n") })));
  });
  if (main.some((point) => STARTS[point.arm] >= 1)) used.push([study.words.none, "currentColor", "diamond2"]);
  if (main.some((point) => point.corrected !== null)) used.push([study.words.corrected, "currentColor", "times"]);
  const starts = [...new Set(study.arms.map((arm) => arm.start))].sort((a, b) => a - b);
  const length = isAuc ? study.lengths[`${place.stage}/${place.place}`] ?? null : null;
  if (length !== null && main.length) {
    marks.unshift(Plot.ruleY([length], { stroke: "var(--soft)", strokeDasharray: "4,3" }));
    marks.push(Plot.text([length], { x: () => ((starts.at(-2) ?? 1) + starts.at(-1)) / 2, y: (value) => value, text: () => "text length alone", dy: -6, fill: "var(--soft)" }));
  }
  const tops = [...main, ...behind].map((point) => Math.max(point.high ?? 0, point.value + (point.std ?? 0), point.corrected ?? 0));
  const top = isAuc ? 1 : Math.max(0.05, ...tops), bottom = isAuc ? Math.min(0.5, length ?? 0.5, ...main.map((p) => p.low ?? p.value)) : 0;
  const title = choice.decoder && !isAuc ? study.decoders[choice.decoder] : place.title;
  return { title, legend: used, rows: main, top, bottom, text: (p) => `${LABELS[p.arm]} ${shown(p.value)}`, options: { marks,
    x: { domain: [-0.05, 1.05], ticks: starts, tickFormat: (x) => TICKS[x], label: study.words.start },
    y: { tickFormat: isAuc ? ".2f" : ".0%", label: isAuc ? "test AUC" : "attack success", grid: true, nice: true } } };
}

/** The marks of points on a curve: whiskers (dashed for a single run), the single runs, the points, and crosses for corrected values. */
function pointMarks(points, ink, symbol) {
  const runs = points.flatMap(runsOf), whiskers = points.filter((point) => point.low !== null);
  const whisker = { x: "start", y1: "low", y2: "high", stroke: ink, strokeOpacity: 0.8 };
  return [
    Plot.ruleX(whiskers.filter((point) => !point.one_run), whisker),
    Plot.ruleX(whiskers.filter((point) => point.one_run), { ...whisker, strokeDasharray: "2,2" }),
    Plot.dot(runs.filter((run) => run.isHollow), { x: "start", y: "value", r: 2, stroke: ink, fill: "var(--paper)", strokeOpacity: faintly(0.6, 0.85) }),
    Plot.dot(runs.filter((run) => !run.isHollow), { x: "start", y: "value", r: 2, fill: ink, fillOpacity: faintly(0.6, 0.85) }),
    Plot.dot(points, { x: "start", y: "value", r: 4.5, symbol, stroke: ink, strokeWidth: 1.4, fill: (point) => (point.hollow ? "var(--paper)" : ink) }),
    Plot.dot(points.filter((point) => point.corrected !== null), { x: "start", y: "corrected", r: 4.5, symbol: "times", stroke: ink, strokeWidth: 1.8 }),
  ];
}

/** The single runs behind a point; a star marks the incoherent ones. */
function runsOf(point) {
  return point.runs ? point.runs.split(", ").map((run) => ({ ...point, value: Number.parseFloat(run), isHollow: run.endsWith("*") })) : [];
}

/** Answers to benign requests: a bar for each arm, divided into categories. */
function barPanel(place) {
  const all = chosen(place);
  const bars = all.filter((point) => CATEGORIES.includes(point.measure) && point.value > 0)
    .sort((a, b) => CATEGORIES.indexOf(a.measure) - CATEGORIES.indexOf(b.measure));
  const left = {};
  for (const bar of bars) { bar.x1 = left[bar.arm] ?? 0; left[bar.arm] = bar.x2 = bar.x1 + bar.value; }
  const complied = all.filter((point) => point.measure === "not over-refused");
  const order = study.arms.filter((arm) => arm.name in left)
    .sort((a, b) => (a.interventions === "none") - (b.interventions === "none") || d3.ascending(a.interventions, b.interventions) || a.start - b.start);
  const onBars = { y: (point) => LABELS[point.arm], dy: 8 }; // black in dark mode as well: the bars are pale there
  const fill = (bar) => `var(--k${CATEGORIES.indexOf(bar.measure)})`;
  const used = CATEGORIES.filter((name) => bars.some((bar) => bar.measure === name));
  return { title: place.title, legend: used.map((name) => [study.categories[name], `var(--k${CATEGORIES.indexOf(name)})`, "area"]),
    rows: [...bars, ...complied], text: (p) => `${LABELS[p.arm]}: ${study.categories[p.measure] ?? p.measure} ${percent(p.value)}`,
    options: { height: 50 + 30 * order.length, marginTop: 8, marginLeft: 150,
      marks: [
        Plot.barX(bars, { x1: "x1", x2: "x2", y: (bar) => LABELS[bar.arm], fill, insetTop: 1, insetBottom: 1 }),
        Plot.ruleY(complied, { x1: "low", x2: "high", stroke: "#111", ...onBars }),
        Plot.dot(complied.flatMap(runsOf), { x: "value", r: 2.5, fill: "#fff", stroke: "#111", ...onBars }),
        Plot.dot(complied, { x: "value", fill: "#111", stroke: "#fff", symbol: "diamond2", r: 4.5, ...onBars }),
        Plot.tip(bars, Plot.pointer({ x: (bar) => (bar.x1 + bar.x2) / 2, y: (bar) => LABELS[bar.arm],
          title: (bar) => `${LABELS[bar.arm]}\n${study.categories[bar.measure]}: ${percent(bar.value)}` }))],
      x: { domain: [0, 1], tickFormat: ".0%", label: "share of answers" },
      y: { domain: order.map((arm) => arm.label), label: null } } };
}

/** A panel without choices, drawn as eval/report/panels.py describes it: lines, dots, areas, intervals. */
function plainPanel(panel) {
  const marks = [], used = new Map(), rows = [];
  const formats = { percent: ".0%", count: "~s", points: (value) => `${value > 0 ? "+" : ""}${Math.round(value * 100)}`, "": undefined };
  let below = null;
  for (const series of panel.series) {
    const long = series.x.length ? series.x : series.y;
    const data = long.map((_, i) => ({ x: series.x[i], y: series.y[i], ...(series.low.length && { low: series.low[i], high: series.high[i] }) }));
    for (const one of data) { one.label = series.label; if (panel.lanes.length) one.lane = panel.lanes[Math.round(one.y)]; rows.push(one); }
    const look = { stroke: colour(series.colour), strokeOpacity: (series.faint ? faintly(0.4, 0.6) : 1) * series.strength };
    if (series.kind === "line") marks.push(Plot.line(data, { x: "x", y: "y", ...look, strokeWidth: series.faint ? 1 : 2, strokeDasharray: dashes(series.colour) }));
    else if (series.kind === "dots" && series.hollow) marks.push(Plot.dot(data, { x: "x", y: "y", r: 4, ...look, strokeWidth: 1.4, fill: "var(--paper)" }));
    else if (series.kind === "dots") marks.push(Plot.dot(data, { x: "x", y: "y", r: series.faint ? 2 : 4, fill: colour(series.colour), fillOpacity: series.faint ? faintly(0.6, 0.85) : 1 }));
    else if (series.kind === "rule") marks.push(Plot.ruleX(data, { x: "x", ...look, strokeDasharray: "4,3" }));
    else if (series.kind === "span") marks.push(Plot.ruleY(data, { x1: "low", x2: "high", y: "y", ...look, strokeWidth: 2 }));
    else if (series.kind === "whisker") marks.push(Plot.ruleX(data, { x: "x", y1: "low", y2: "high", ...look }));
    else {
      below ??= data.map(() => 0);
      data.forEach((one, i) => { one.y1 = below[i]; below[i] = one.y2 = below[i] + one.y; });
      marks.push(Plot.areaY(data, { x: "x", y1: "y1", y2: "y2", fill: colour(series.colour) }));
    }
    const known = used.get(series.label);
    if (series.label && (!known || known[3] > series.faint)) used.set(series.label, [series.label, colour(series.colour), series.kind, series.faint, series.strength, dashes(series.colour)]);
  }
  const lanes = panel.lanes.length
    ? { type: "linear", domain: [panel.lanes.length - 0.5, -0.5], ticks: panel.lanes.map((_, i) => i), tickFormat: (i) => panel.lanes[i] ?? "", tickSize: 0 }
    : { tickFormat: formats[panel.y_format], grid: true, ...(panel.y_format === "percent" && { domain: [0, 1] }), ...(panel.y_range && { domain: panel.y_range }) };
  return { title: panel.title, legend: [...used.values()], rows, text: null, options: { marks,
    ...(panel.lanes.length && { height: 60 + 22 * panel.lanes.length, marginTop: 8, marginLeft: 150 }),
    x: { label: panel.x, tickFormat: formats[panel.x_format], ticks: 5 }, y: { label: panel.y || null, ...lanes } } };
}

function panelsOf(spec) {
  if (!spec.places.length) return spec.panels.map(plainPanel);
  const places = choice.decoder && spec.places[0].measure === "attack success" ? spec.places.slice(0, 1) : spec.places;
  const made = places.map((place) => (place.measure === "answers" ? barPanel(place) : curvePanel(place)));
  for (const panel of made) // panels side by side share one scale
    if ("top" in panel) panel.options.y.domain = [Math.min(...made.map((one) => one.bottom)), Math.min(1, Math.max(...made.map((one) => one.top)))];
  return made;
}

function drawFigure(name) {
  const figure = document.getElementById(name), picture = figure.querySelector(".picture");
  const made = panelsOf(study.figures[name]);
  if (!made.length) return;
  const gap = 16, room = picture.clientWidth - 24;
  const columns = made.length > 1 && room >= 660 ? 2 : 1;
  const width = Math.max(260, Math.floor((room - gap * (columns - 1)) / columns));
  const legend = new Map(made.flatMap((panel) => panel.legend).map((entry) => [entry[0], entry]));
  const drawn = element("div", { className: "drawn", role: "group", "aria-label": figure.querySelector("strong").textContent },
    element("ul", { className: "legend" }, ...[...legend.values()].map(([label, ...mark]) => element("li", {}, swatch(...mark), label))));
  const grid = element("div", { className: "panels" });
  grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  for (const panel of made) {
    if (width < 420 && typeof panel.options.x.ticks === "number") panel.options.x.ticks = 4;
    const told = panel.text ? panel.rows.slice(0, 40).map(panel.text).join("; ") : panel.legend.map(([label]) => label).join(", ");
    const empty = !panel.rows.length;
    const svg = Plot.plot({ width, height: 300, marginTop: 32, marginBottom: 40, className: "plot", ...panel.options, ariaLabel: `${panel.title} ${told || "not evaluated yet"}` });
    svg.querySelector("style")?.remove(); // the page's policy allows only its own style, which has the same rules
    svg.setAttribute("role", "img");
    for (const part of svg.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label"); // the picture has one label
    grid.append(element("div", {}, element("h4", {}, panel.title), ...(empty ? [element("p", { className: "none" }, Object.values(choice).some(Boolean) ? "nothing was measured for this choice" : "not evaluated yet")] : [svg])));
  }
  drawn.append(grid);
  picture.querySelector(".static").hidden = true;
  picture.querySelector(".drawn")?.remove();
  picture.append(drawn);
}

/** All panels of a figure as one SVG, with its colours written out. */
function svgOf(figure) {
  const panels = [...figure.querySelectorAll(".panels svg")];
  const style = getComputedStyle(figure);
  const width = Math.max(...panels.map((svg) => svg.width.baseVal.value)), height = panels.reduce((sum, svg) => sum + svg.height.baseVal.value, 0);
  let top = 0;
  const parts = panels.map((svg) => {
    const copy = svg.cloneNode(true);
    copy.setAttribute("y", top);
    top += svg.height.baseVal.value;
    return new XMLSerializer().serializeToString(copy);
  });
  const text = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="12" fill="currentColor" color="${style.color}">${parts.join("")}</svg>`;
  return text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
}

function csvOf(name) {
  const rows = panelsOf(study.figures[name]).flatMap((panel) => panel.rows.map((row) => ({ panel: panel.title, ...row })));
  const columns = [...new Set(rows.flatMap(Object.keys))].filter((column) => !/^[xy][12]$|^start$/.test(column));
  return csv(columns, rows.map((row) => columns.map((column) => row[column])));
}

function drawAll() {
  for (const name of Object.keys(study.figures)) if (document.getElementById(name)) drawFigure(name);
}

function setUpCharts() {
  const form = document.getElementById("choice") ?? element("form");
  const attacks = POINTS.filter((point) => point.measure === "attack success");
  const options = (values, first, text = (value) => value) => [["", first], ...[...new Set(values)].filter(Boolean).map((value) => [value, text(value)])];
  const add = (key, label, choices) => form.append(menu(label, choices, "", (value) => { choice[key] = value; drawAll(); }));
  add("judge", "Judge", options(POINTS.map((point) => point.judge), "the study’s own"));
  add("benchmark", "Benchmark", options(attacks.map((point) => point.benchmark), "mean of all"));
  add("decoder", "Decoder", options(attacks.map((point) => point.place), "as in the paper", (name) => study.decoders[name] ?? name));
  form.hidden = ![...form.children].some((label) => !label.hidden);
  for (const [name, spec] of Object.entries(study.figures)) {
    const figure = panelsOf(spec).length ? document.getElementById(name) : null; // figures without panels stay pictures
    figure?.querySelector(".picture").after(element("p", { className: "tools" },
      element("button", { type: "button", className: "small", onclick: () => save(`${name}.csv`, "text/csv", csvOf(name)) }, "CSV"),
      element("button", { type: "button", className: "small", onclick: () => save(`${name}.svg`, "image/svg+xml", [svgOf(figure)]) }, "SVG")));
  }
  drawAll();
  DARK.addEventListener("change", drawAll);
  let width = document.body.clientWidth, timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; drawAll(); } }, 150);
  });
}
setUpCharts();
