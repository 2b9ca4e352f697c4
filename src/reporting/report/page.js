// Draws the charts of the page, and moves, sorts and filters what the reader asks for. Data stand in #data as JSON.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// A lighter counterpart, for a dark page, of every colour that a chart names.
const ON_DARK = {
  "#0072B2": "#5fb0ea", "#D55E00": "#ff8f4d", "#009E73": "#35c79b", "#CC79A7": "#e39cc3", "#E69F00": "#f0b53c",
  "#56B4E9": "#7fcbf6", "#222222": "#e8e9ea", "#767676": "#a2a8b0", "#882255": "#d678a6", "#332288": "#9d90f0",
};

const dark = () => {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function look(element) {
  const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
  const narrow = element.clientWidth < DATA.narrow, font = of("--sans");
  const axis = {
    labelColor: of("--ink"), titleColor: of("--soft"), gridColor: of("--line"), domainColor: of("--line"),
    tickColor: of("--line"), labelFontSize: 11.5, titleFontSize: 11.5, titleFontWeight: "normal",
    labelLimit: narrow ? 158 : 330, titlePadding: 8,
  };
  const legend = { labelColor: of("--ink"), titleColor: of("--soft"), labelFontSize: 11.5, titleFontSize: 11.5, titleFontWeight: "normal",
    symbolBaseFillColor: of("--soft"), symbolBaseStrokeColor: of("--soft") };
  if (narrow) Object.assign(legend, { labelLimit: Math.max(160, element.clientWidth - 60), layout: { top: { direction: "vertical", anchor: "start" } } });
  return { background: null, font, axis, axisQuantitative: { labelSeparation: 6 }, legend, view: { stroke: null }, style: { cell: { stroke: null } } };
}

// ---- charts: drawn when they come near the window, and anew in the other theme or width
const charts = new Map(); // name -> {element, spec, around, canvas, rows, signals, view, drawing}
for (const element of $$(".chart")) {
  const chart = { element, ...DATA.charts[element.dataset.chart], signals: {}, view: null, drawing: null };
  chart.rows = { ...chart.spec.datasets };
  charts.set(element.dataset.chart, chart);
  keepRoom(chart);
}

// Of the plot in pixels. A step for each row is multiplied here: Vega-Lite warns of it where the width is the element's.
function plotHeight({ spec, rows }) {
  if (!spec.height.step) return spec.height;
  return spec.height.step * Math.max(1, new Set((Object.values(rows)[0] ?? []).map((row) => row.label)).size);
}

// What is not drawn yet has the height that it will have, so that nothing below it moves when it is.
function keepRoom(chart) {
  const { element, around } = chart;
  element.style.minHeight = `${plotHeight(chart) + around[element.clientWidth < DATA.narrow ? 1 : 0]}px`;
}

async function draw(name) {
  const chart = charts.get(name);
  if (chart.view) chart.element.style.minHeight = `${chart.element.offsetHeight}px`; // embedding empties the element
  let text = JSON.stringify({ ...chart.spec, height: plotHeight(chart), datasets: chart.rows });
  if (dark()) text = text.replace(/#[0-9A-Fa-f]{6}/g, (colour) => ON_DARK[colour.toUpperCase()] ?? colour);
  chart.drawing = vegaEmbed(chart.element, JSON.parse(text), {
    actions: false, renderer: chart.canvas ? "canvas" : "svg", config: look(chart.element), tooltip: { theme: "custom" },
  }).then(async ({ view }) => {
    chart.view = view;
    for (const [signal, value] of Object.entries(chart.signals)) view.signal(signal, value);
    await view.runAsync();
    chart.element.style.minHeight = "";
    chart.element.dataset.drawn = "yes";
  });
  return chart.drawing;
}

function show(name, rows, signals = {}) {
  const chart = charts.get(name);
  if (!chart) return;
  Object.assign(chart.rows, rows);
  Object.assign(chart.signals, signals);
  if (!chart.drawing) return keepRoom(chart);
  chart.drawing = chart.drawing.then(async () => {
    for (const [key, values] of Object.entries(rows)) chart.view.data(key, values);
    for (const [signal, value] of Object.entries(signals)) chart.view.signal(signal, value);
    await chart.view.height(plotHeight(chart)).resize().runAsync();
  });
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    draw(entry.target.dataset.chart);
  }
}, { rootMargin: "500px" });
for (const { element } of charts.values()) near.observe(element);

function redraw() {
  for (const [name, chart] of charts) if (chart.drawing) chart.drawing = chart.drawing.then(() => draw(name));
}
addEventListener("beforeprint", () => { for (const name of charts.keys()) draw(name); });

// ---- the section that was asked for stays at the top while charts around it are drawn, until the reader moves
const main = $("main"), navigated = performance.getEntriesByType("navigation")[0]?.type === "navigate";
const named = (hash) => (hash.length > 1 ? document.getElementById(hash.slice(1)) : null);
const away = (element) => element.getBoundingClientRect().top - parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop);
let asked = navigated ? named(location.hash) : null, tall = main.offsetHeight; // on a reload the browser knows the place
new ResizeObserver(() => {
  const grown = Math.abs(main.offsetHeight - tall);
  tall = main.offsetHeight;
  if (!asked) return;
  if (Math.abs(away(asked)) <= grown + 2) asked.scrollIntoView();
  else asked = null; // so far only a reader goes
}).observe(main);
addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link) asked = named(link.hash);
});
addEventListener("hashchange", () => { // also by an address that is typed, or back to where the reader was
  const section = named(location.hash);
  if (section !== asked) asked = section && Math.abs(away(section)) < 2 ? section : null;
});
for (const moved of ["wheel", "touchmove", "pointerdown", "keydown"]) {
  addEventListener(moved, () => { asked = null; }, { capture: true, passive: true });
}

// ---- theme
const THEMES = ["auto", "light", "dark"];
const themeButton = $("#theme");
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.textContent = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" }[theme];
  themeButton.dataset.theme = theme;
  redraw();
}
themeButton.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(themeButton.dataset.theme) + 1) % 3]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
setTheme("auto");
matchMedia("(min-width: 620px)").addEventListener("change", redraw);

// ---- where the reader is
const links = new Map($$("nav a").map((link) => [link.hash.slice(1), link]));
const passing = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    const link = links.get(entry.target.id);
    if (!link) continue;
    link.setAttribute("aria-current", "true");
    const list = link.closest("ol");
    if (list.scrollWidth > list.clientWidth) list.scrollLeft = link.offsetLeft - list.clientWidth / 3;
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const section of $$("main section[id], main .hero")) passing.observe(section);

// ---- ledger
function filterClaims() {
  const paper = $("#claim-paper").value, verdict = $("#claim-verdict").value;
  let shown = 0;
  for (const claim of $$(".claim")) {
    claim.hidden = (paper && claim.dataset.paper !== paper) || (verdict && claim.dataset.verdict !== verdict);
    shown += !claim.hidden;
  }
  for (const group of $$(".of-paper")) group.hidden = $$(".claim", group).every((claim) => claim.hidden);
  $("#claim-count").textContent = `${shown} of ${$$(".claim").length} claims`;
}
if ($("#claim-paper")) {
  for (const id of ["#claim-paper", "#claim-verdict"]) $(id).addEventListener("change", filterClaims);
  filterClaims();
}

// ---- methods: table, intervals, heat map, storage
const KINDS = { text: (a, b) => a.localeCompare(b), number: (a, b) => a - b };
function sortTable(table, index, direction) {
  const heads = $$("thead th", table), kind = heads[index].dataset.kind ?? "text";
  const key = (row) => row.cells[index].dataset.sort ?? row.cells[index].textContent;
  const empty = (value) => value === "" || value === undefined;
  const rows = $$("tbody tr", table).sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (empty(a) || empty(b)) return empty(a) - empty(b); // rows without a number come last, up or down
    return direction * (kind === "number" ? KINDS.number(Number(a), Number(b)) : KINDS.text(a, b));
  });
  table.tBodies[0].append(...rows);
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[index].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
}
for (const table of $$("table.sortable")) {
  $$("thead th", table).forEach((head, index) => {
    const button = $("button", head);
    if (button) button.addEventListener("click", () => {
      const first = head.dataset.kind === "number" ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
      sortTable(table, index, next === "ascending" ? 1 : -1);
    });
  });
}

const escape = (text) => String(text ?? "").replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const fixed = (value, digits = 1) => (value === null || value === undefined ? "" : value.toFixed(digits));
const cell = (text, sort, extra = "") => `<td class="num" data-sort="${sort ?? ""}">${escape(text)}${extra}</td>`;

function fillMethods() {
  const value = (id) => $(id).value, measure = value("#m-measure"), coefficient = value("#m-coefficient");
  const words = value("#m-search").trim().toLowerCase();
  const several = value("#m-mode") === "";
  const rows = DATA.methods
    .filter((row) => (!value("#m-mode") || row.mode === value("#m-mode")) && row.tasks === Number(value("#m-tasks")))
    .filter((row) => row.registered || value("#m-options"))
    .filter((row) => !value("#m-model") || row.model === value("#m-model"))
    .filter((row) => !value("#m-kind") || row.kind === value("#m-kind"))
    .filter((row) => !words || `${row.method} ${row.needs} ${row.paper}`.toLowerCase().includes(words))
    .map((row) => ({ ...row, number: row.values[measure][coefficient], label: several ? `${row.method}, ${row.modeTitle}` : row.method }))
    .filter((row) => row.number)
    .sort((a, b) => b.number.mean - a.number.mean);
  const worst = (row) => row.byTask[measure].reduce((low, task) => (low === null || task.value < low.value ? task : low), null);
  $("#methods").classList.toggle("one-mode", !several);
  $("#methods tbody").innerHTML = rows.map((row) => {
    const low = worst(row);
    const theirs = measure === "accuracy" && coefficient === "tuned" ? Object.entries(row.published) : [];
    const cited = row.paper ? `<br><a class="small" href="https://arxiv.org/abs/${row.paper}">arXiv:${row.paper}</a>` : "";
    return `<tr><td class="name" data-sort="${escape(row.method)}">${escape(row.method)}${cited}</td><td>${escape(row.modeTitle)}</td>` +
      cell(row.number.text, row.number.mean) + cell(row.number.seedsText, row.number.overSeeds?.[0]) +
      cell(low ? `${fixed(low.value)} ${low.task}` : "", low?.value) +
      cell(theirs.map(([family, number]) => `${fixed(number)} (${family})`).join(", "), theirs[0]?.[1]) +
      `<td>${escape(coefficient === "tuned" ? row.chosen : "")}</td><td>${escape(row.needs)}</td><td>${escape(row.model)}</td>` +
      cell(fixed(row.storage, 2), row.storage) + cell(row.seconds === null ? "" : fixed(row.seconds, row.seconds < 10 ? 1 : 0), row.seconds) +
      `<td><button class="copy" data-text="${escape(row.command)}" aria-label="Copy the command of ${escape(row.label)}">copy</button></td></tr>`;
  }).join("") || `<tr><td colspan="12" class="soft">No result fits: choose other filters.</td></tr>`;
  for (const head of $$("#methods thead th")) head.removeAttribute("aria-sort");
  $("#methods thead th:nth-child(3)").setAttribute("aria-sort", "descending");
  $("#m-count").textContent = `${rows.length} rows`;
  // No accuracy is above 100, as the t interval of few seeds can be; of normalised ones, the axis ends at the highest dot.
  const dots = rows.flatMap((row) => [row.number.mean, ...row.number.seeds.map(([, number]) => number)]);
  const most = measure === "accuracy" ? 100 : Math.max(100, ...dots);
  const end = (row, ends, side) => Math.min(most, Math.max(0, ends?.[side] ?? row.number.mean));
  const theirs = (row) => (measure === "accuracy" && coefficient === "tuned" ? Object.values(row.published)[0] ?? null : null);
  show("intervals", {
    methods: rows.map((row) => ({
      label: row.label, kind: row.kind, needs: row.needs, value: row.number.mean, sd: row.number.sd, n: row.number.n,
      low: end(row, row.number.overSeeds, 0), high: end(row, row.number.overSeeds, 1),
      ilow: end(row, row.number.overImages, 0), ihigh: end(row, row.number.overImages, 1),
      spread: row.number.seedsText, sampled: row.number.imagesText, published: theirs(row), theirs: theirs(row) ?? row.number.mean,
    })),
    seeds: rows.flatMap((row) => row.number.seeds.map(([seed, number]) => ({ label: row.label, kind: row.kind, seed, value: number }))),
  });
}

function fillHeat() {
  const mode = $("#h-mode").value, measure = $("#h-measure").value, tasks = Number($("#h-tasks").value);
  const rows = DATA.methods.filter((row) => row.registered && row.mode === mode && row.tasks === tasks && row.values[measure].tuned)
    .sort((a, b) => b.values[measure].tuned.mean - a.values[measure].tuned.mean);
  const cells = rows.flatMap((row) => [
    ...row.byTask[measure], { task: "mean", value: row.values[measure].tuned.mean, sd: row.values[measure].tuned.sd },
  ].map((entry) => ({ ...entry, label: row.method })));
  const values = cells.map((entry) => entry.value), low = Math.min(...values), high = Math.max(...values);
  show("heat", { heat: cells.map((entry) => ({ ...entry, high: entry.value > low + 0.55 * (high - low) })) });
}

function fillStorage() {
  const mode = $("#s-mode").value, tasks = Number($("#s-tasks").value);
  const rows = DATA.methods.filter((row) => row.registered && row.mode === mode && row.tasks === tasks && row.storage !== null && row.values.accuracy.tuned);
  const points = rows.map((row) => ({
    label: row.method, kind: row.kind, model: row.model, needs: row.needs, storage: row.storage, value: row.values.accuracy.tuned.mean,
  }));
  const { finetuned } = rows.find((row) => row.finetuned) ?? {};
  if (finetuned) points.push({
    label: "fine-tuned, one each", kind: "merged without images", model: "a model per task", needs: "nothing is merged", storage: finetuned[0], value: finetuned[1],
  });
  const best = points.filter((point) => point.storage <= 1.001).sort((a, b) => b.value - a.value)[0];
  const named = points.filter((point) => point.storage > 1.001 || point === best);
  for (const point of named) { // points that lie on each other share a name
    const first = named.find((other) => Math.abs(other.storage - point.storage) < 0.02 && Math.abs(other.value - point.value) < 1.2);
    first.names = first === point ? point.label : `${first.names}, ${point.label}`;
  }
  const listed = named.filter((point) => point.names).sort((a, b) => a.storage - b.storage || b.value - a.value);
  listed.forEach((point, index) => { point.number = index + 1; });
  $("#s-names").innerHTML = listed.map((point) => `<li>${escape(point.names)} <span class="soft">storage ${fixed(point.storage, 2)}, accuracy ${fixed(point.value)} %</span></li>`).join("");
  show("storage", { storage: points });
}

function listen(ids, fill) {
  if (!$(ids[0])) return;
  for (const id of ids) $(id).addEventListener("input", fill);
  fill();
}
listen(["#m-mode", "#m-tasks", "#m-measure", "#m-coefficient", "#m-model", "#m-kind", "#m-options", "#m-search"], fillMethods);
listen(["#h-mode", "#h-measure", "#h-tasks"], fillHeat);
listen(["#s-mode", "#s-tasks"], fillStorage);

// ---- α
const nearest = (alphas, alpha) => alphas.reduce((best, a, i) => (Math.abs(a - alpha) < Math.abs(alphas[best] - alpha) ? i : best), 0);

function fillExplorer() {
  const method = DATA.explorer[$("#e-method").value], slider = $("#e-alpha"), alpha = Number(slider.value);
  const modes = DATA.modes.filter((mode) => method[mode.name]);
  $("#e-value").textContent = `α = ${alpha.toFixed(3).replace(/0$/, "")}`;
  slider.setAttribute("aria-valuetext", `α ${alpha}`);
  const names = Object.keys(method[modes[0].name].rows), at = {};
  for (const mode of DATA.modes) {
    const curves = method[mode.name], panel = $(`#panel-${mode.name}`);
    if (panel) panel.hidden = !curves;
    if (!curves) continue;
    const index = (at[mode.name] = nearest(curves.alphas, alpha));
    const chosen = nearest(curves.alphas, curves.chosenMean);
    $(`#note-${mode.name}`).textContent = `chosen α ${curves.chosenMean.toFixed(3).replace(/0$/, "")}, test accuracy there ${curves.test.toFixed(1)} %`;
    const rows = names.filter((name) => name !== "mean, normalised").flatMap((task) =>
      curves.alphas.map((a, i) => ({ task, alpha: a, value: curves.rows[task][i], at: i === index })));
    show(`curves-${mode.name}`, { curves: rows, chosen: [{ alpha: curves.chosenMean }] }, { alpha });
    curves.chosenIndex = chosen;
  }
  $("#e-table thead tr").innerHTML = `<th scope="col">validation accuracy, %</th>` +
    modes.map((mode) => `<th scope="col" class="num">${escape(mode.short)}</th><th scope="col" class="num">at its chosen α</th>`).join("");
  $("#e-table tbody").innerHTML = names.map((name) => {
    const strong = name.startsWith("mean") ? ["<b>", "</b>"] : ["", ""];
    return `<tr><td>${strong[0]}${escape(name)}${strong[1]}</td>` + modes.map((mode) => {
      const curves = method[mode.name], row = curves.rows[name];
      return `<td class="num" data-row="${escape(name)}" data-mode="${mode.name}">${strong[0]}${row[at[mode.name]].toFixed(1)}${strong[1]}</td>` +
        `<td class="num soft">${row[curves.chosenIndex].toFixed(1)}</td>`;
    }).join("") + "</tr>";
  }).join("");
}

function pickExplorer() {
  const method = DATA.explorer[$("#e-method").value], slider = $("#e-alpha");
  const curves = Object.values(method), alphas = [...new Set(curves.flatMap((c) => c.alphas))].sort((a, b) => a - b);
  slider.min = alphas[0];
  slider.max = alphas.at(-1);
  slider.step = Math.min(...alphas.slice(1).map((a, i) => a - alphas[i]).filter((gap) => gap > 1e-6));
  slider.value = (method.standard ?? curves[0]).chosenMean;
  fillExplorer();
}
if ($("#e-alpha")) {
  $("#e-alpha").addEventListener("input", fillExplorer);
  $("#e-method").addEventListener("change", pickExplorer);
  $("#e-reset").addEventListener("click", pickExplorer);
  pickExplorer();
}

// ---- commands
function filterCommands() {
  const words = $("#c-search").value.trim().toLowerCase(), kind = $("#c-kind").value;
  for (const row of $$("#made tbody tr")) {
    row.hidden = (words && !row.textContent.toLowerCase().includes(words)) || (kind && row.dataset.kind !== kind);
  }
}
listen(["#c-search", "#c-kind"], filterCommands);
addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const text = button.dataset.text ?? $("pre", button.parentElement).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from disk may be refused the clipboard
    const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "copied";
  $("#said").textContent = "Command copied";
  setTimeout(() => { button.textContent = before; }, 1500);
});

// ---- figures
const dialog = $("#large");
for (const button of $$(".shots button")) button.addEventListener("click", () => {
  const image = $("img", button).cloneNode();
  $("img", dialog)?.remove();
  dialog.append(image);
  dialog.showModal();
});
if (dialog) dialog.addEventListener("click", () => dialog.close());
