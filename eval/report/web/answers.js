"use strict";
/* The browser of all answers: filters, full-text search, a list that holds only the rows in sight, and one prompt's answers side
   by side. The page's address keeps its whole state after "#answers?". */

const NAMES = study.answers;
const data = { prompts: [], texts: [], answers: [], others: NAMES.judges.map(() => []) };
for (const name of ["arm", "stage", "decoder", "prompt", "text", "sample", "finish", "tokens", "own", "verdict"]) data[name] = [];
const FILTERS = ["arm", "seed", "stage", "benchmark", "decoder", "judge", "verdict", "q"];
const ROW_HEIGHT = 56;
const state = { ...Object.fromEntries(FILTERS.map((name) => [name, ""])), at: "" };
const view = { matches: new Int32Array(0), count: 0, place: -1, run: 0, all: false, loaded: false };
const ENDINGS = { end: "complete", length: "cut at the length limit", tag: "cut at the tag" };
const revealed = new Set(); // answers that the reader asked to see
let ui = {};

async function unpack(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function addBlock(block) {
  const push = (to, from) => { for (const one of from) to.push(one); };
  push(data.prompts, block.prompts.map(([benchmark, id, behavior, category]) => ({ benchmark, id, behavior, category })));
  push(data.texts, block.texts);
  push(data.answers, block.answers);
  for (const [name, column] of Object.entries(block.columns)) push(data[name], column);
  block.others.forEach((column, i) => push(data.others[i], column));
}

const pause = () => new Promise((done) => setTimeout(done));

async function load() {
  for (const script of document.querySelectorAll("script.block")) {
    addBlock(await unpack(script.textContent));
    script.remove();
    ui.status.textContent = `reading: ${data.answers.length.toLocaleString()} of ${NAMES.count.toLocaleString()} answers`;
    if (view.count < 100) await filter();
  }
  view.loaded = true;
  fillMenus();
  await filter();
  if (state.at) openAddress();
  document.getElementById("browser").dataset.loaded = "";
}

/* ---- what a row says ---- */

const judgeIndex = () => NAMES.judges.indexOf(state.judge);
const verdictOf = (i) => NAMES.verdict[state.judge ? data.others[judgeIndex()][i] : data.verdict[i]];
const verdictText = (verdict) => (verdict === "" ? "not judged yet" : study.categories[verdict] ?? verdict);
const armOf = (i) => NAMES.arms[data.arm[i]];
const isVeiled = (i) => !revealed.has(i) && !view.open &&
  (NAMES.verdict[data.verdict[i]] === "harmful" || data.others.some((column) => NAMES.verdict[column[i]] === "harmful"));
const armText = (i) => (LABELS[armOf(i).name] ?? armOf(i).name) + (study.several ? `, seed ${armOf(i).seed}` : "");
const address = (i) => [armOf(i).key, NAMES.stage[data.stage[i]], NAMES.decoder[data.decoder[i]], data.prompts[data.prompt[i]].benchmark,
  data.prompts[data.prompt[i]].id, data.sample[i]].join("|");

/* ---- filters ---- */

/** The numbers of the trained arms that the filters for arm and seed allow. */
const chosenArms = () => new Set(NAMES.arms.flatMap((arm, k) =>
  ((!state.arm || arm.name === state.arm) && (!state.seed || String(arm.seed) === state.seed) ? [k] : [])));

/** A function that says whether row i passes the filters. It is made once for each search, so that a row costs few comparisons. */
function matcher() {
  const at = (list, value) => (value === "" ? -1 : list.indexOf(value));
  const arms = chosenArms();
  const prompts = state.benchmark && new Set(data.prompts.flatMap((prompt, k) => (prompt.benchmark === state.benchmark ? [k] : [])));
  const stage = at(NAMES.stage, state.stage), decoder = at(NAMES.decoder, state.decoder);
  const verdicts = state.judge ? data.others[judgeIndex()] ?? [] : data.verdict;
  const verdict = NAMES.verdict.indexOf(state.verdict === "none" ? "" : state.verdict); // -1: no answer has it
  const unjudged = NAMES.verdict.indexOf("");
  const words = state.q && new RegExp(state.q.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "iu");
  const asked = words && data.texts.map((text) => words.test(text));
  return (i) => arms.has(data.arm[i]) && (stage < 0 || data.stage[i] === stage) && (decoder < 0 || data.decoder[i] === decoder) &&
    (!prompts || prompts.has(data.prompt[i])) && (!state.verdict || verdicts[i] === verdict) && (!state.judge || state.verdict || verdicts[i] !== unjudged) &&
    (!words || asked[data.text[i]] || words.test(data.answers[i]));
}

/** Find the rows that pass, a slice at a time, so that the page stays responsive. A newer search ends an older one. */
async function filter() {
  const run = ++view.run, passes = matcher(), total = data.answers.length, found = new Int32Array(total);
  let count = 0;
  for (let i = 0, until = performance.now() + 30; i < total; i++) {
    if (passes(i)) found[count++] = i;
    if ((i & 1023) === 0 && performance.now() > until) {
      await pause();
      if (run !== view.run) return;
      until = performance.now() + 30;
    }
  }
  Object.assign(view, { matches: found, count });
  view.place = Math.min(Math.max(view.place, 0), count - 1);
  ui.inner.style.height = `${count * ROW_HEIGHT}px`;
  if (view.loaded) ui.status.textContent = `${count.toLocaleString()} of ${total.toLocaleString()} answers`;
  renderRows();
}

let typing = 0;
function changed(name, value) {
  state[name] = value;
  if (name !== "q") return remember(), filter();
  clearTimeout(typing);
  typing = setTimeout(() => { remember(); filter(); }, 150);
}

/* ---- the list ---- */

function renderRows() {
  const top = ui.list.scrollTop, first = Math.max(0, Math.floor(top / ROW_HEIGHT) - 4);
  const last = Math.min(view.count, Math.ceil((top + ui.list.clientHeight) / ROW_HEIGHT) + 4);
  const rows = [];
  for (let place = first; place < last; place++) {
    const i = view.matches[place], verdict = verdictOf(i), prompt = data.prompts[data.prompt[i]];
    const text = isVeiled(i) ? "judged harmful: select it, then ask for its text" : visible(data.answers[i].slice(0, 240)) || "(empty)";
    const row = element("div", { className: "row", role: "option", id: `row-${place}`, "aria-selected": String(place === view.place),
      "aria-posinset": place + 1, "aria-setsize": view.count, onclick: () => { view.place = place; renderRows(); show(); } },
      element("p", { className: "meta" }, element("span", { className: `verdict-${verdict || "none"}` }, verdictText(verdict)),
        ` · ${armText(i)} · ${NAMES.stage[data.stage[i]]} · ${study.decoders[NAMES.decoder[data.decoder[i]]] ?? NAMES.decoder[data.decoder[i]]} · ${visible(prompt.benchmark)} · ${visible(prompt.behavior.slice(0, 90))}`),
      element("p", {}, text));
    row.style.top = `${place * ROW_HEIGHT}px`;
    rows.push(row);
  }
  ui.inner.replaceChildren(...rows);
  const inSight = view.place >= first && view.place < last;
  if (inSight) ui.list.setAttribute("aria-activedescendant", `row-${view.place}`);
  else ui.list.removeAttribute("aria-activedescendant");
}

function moveTo(place) {
  if (!view.count) return;
  view.place = Math.min(Math.max(place, 0), view.count - 1);
  const top = view.place * ROW_HEIGHT;
  if (top < ui.list.scrollTop) ui.list.scrollTop = top;
  else if (top + ROW_HEIGHT > ui.list.scrollTop + ui.list.clientHeight) ui.list.scrollTop = top + ROW_HEIGHT - ui.list.clientHeight;
  renderRows();
}

function onKey(event) {
  const page = Math.floor(ui.list.clientHeight / ROW_HEIGHT);
  const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -view.count, End: view.count };
  if (event.key in steps) moveTo(view.place + steps[event.key]);
  else if (event.key === "Enter" || event.key === " ") show(true);
  else return;
  event.preventDefault();
}

/* ---- side by side ---- */

/** The words of `text`, each with whether `reference` lacks it, that is, whether the longest common subsequence leaves it out. */
function differing(reference, text) {
  const a = (reference.match(/\S+/g) ?? []).slice(0, 600), parts = text.match(/\S+|\s+/g) ?? [];
  const b = parts.filter((part) => /\S/.test(part)).slice(0, 600);
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  const common = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length; )
    if (a[i] === b[j]) { common.add(j); i++; j++; } else if (length[i + 1][j] >= length[i][j + 1]) i++; else j++;
  let word = -1;
  return parts.map((part) => (/\S/.test(part) ? [part, !common.has(++word)] : [part, false]));
}

/** Row i and the rows to lay beside it: those on the same prompt at the same stage that the filters for arm, seed and decoder
    allow; one sample for each arm and decoder, unless the reader asks for all. */
function companions(i) {
  const arms = chosenArms(), decoder = state.decoder ? NAMES.decoder.indexOf(state.decoder) : -1, best = new Map();
  for (let k = 0; k < data.answers.length; k++) {
    if (data.prompt[k] !== data.prompt[i] || data.stage[k] !== data.stage[i] || !arms.has(data.arm[k])) continue;
    if (decoder >= 0 && data.decoder[k] !== decoder) continue;
    const key = view.all ? k : `${data.arm[k]} ${data.decoder[k]}`;
    if (!best.has(key) || data.sample[k] === data.sample[i]) best.set(key, k);
  }
  best.delete(view.all ? i : `${data.arm[i]} ${data.decoder[i]}`);
  return [i, ...best.values()];
}

function card(i, reference) {
  const own = NAMES.own[data.own[i]], judges = [[own || "no judge", NAMES.verdict[data.verdict[i]]]];
  data.others.forEach((column, k) => { if (NAMES.verdict[column[i]] !== "") judges.push([NAMES.judges[k], NAMES.verdict[column[i]]]); });
  const body = element("div");
  const reveal = () => {
    const text = visible(data.answers[i]);
    const marked = i === reference || isVeiled(reference) ? [text || "(empty)"]
      : differing(visible(data.answers[reference]), text).map(([part, isNew]) => (isNew ? element("mark", {}, part) : part));
    body.replaceChildren(element("pre", { dir: "auto" }, ...marked));
  };
  if (isVeiled(i)) {
    body.append(element("p", {}, "A judge called this answer harmful."),
      element("button", { type: "button", className: "small", onclick: () => { revealed.add(i); i === reference ? show() : reveal(); renderRows(); } }, "Show it"));
  } else reveal();
  return element("article", { className: i === reference ? "chosen" : "" },
    element("h4", {}, armText(i)),
    element("p", { className: "soft" }, `${study.decoders[NAMES.decoder[data.decoder[i]]] ?? NAMES.decoder[data.decoder[i]]}, sample ${data.sample[i] + 1} · ${data.tokens[i]} tokens, ${ENDINGS[NAMES.finish[data.finish[i]]] ?? visible(NAMES.finish[data.finish[i]])}`),
    ...judges.map(([judge, verdict]) => element("p", {}, element("span", { className: `verdict-${verdict || "none"}` }, verdictText(verdict)), ` (${visible(judge)})`)),
    body);
}

function show(takeFocus = false) {
  const i = view.matches[view.place];
  if (i === undefined) return ui.detail.replaceChildren();
  state.at = address(i);
  remember();
  const prompt = data.prompts[data.prompt[i]], rows = companions(i), shown = rows.slice(0, 60);
  const heading = element("h3", { tabIndex: -1 }, `${visible(prompt.benchmark)} ${visible(prompt.id)}${prompt.category ? ` · ${visible(prompt.category)}` : ""}`);
  const samples = element("label", {}, element("input", { type: "checkbox", checked: view.all, onchange: (event) => { view.all = event.target.checked; show(); } }), " all samples");
  ui.detail.replaceChildren(heading,
    element("pre", { className: "box", dir: "auto" }, visible(prompt.behavior)),
    ...(data.texts[data.text[i]] === prompt.behavior ? [] : [element("p", { className: "soft" }, "What the model was given:"), element("pre", { className: "box", dir: "auto" }, visible(data.texts[data.text[i]]))]),
    element("p", {}, `${rows.length} answers at this stage${rows.length > shown.length ? `, the first ${shown.length} of them below` : ""}. Marked words are not in the chosen answer. `, samples, " ",
      element("button", { type: "button", className: "small", onclick: copyLink }, "Copy the link")),
    element("div", { className: "compare" }, ...shown.map((k) => card(k, i))));
  if (takeFocus) heading.focus();
}

async function copyLink(event) {
  try {
    await navigator.clipboard.writeText(location.href);
    event.target.textContent = "Copied";
  } catch {
    const field = element("input", { type: "search", readOnly: true, value: location.href, "aria-label": "Link" });
    event.target.replaceWith(field);
    field.select();
  }
}

/* ---- the address ---- */

function remember() {
  const kept = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
  history.replaceState(null, "", kept.size ? `#answers?${kept}` : "#answers");
}

function readAddress() {
  if (!location.hash.startsWith("#answers?")) return false;
  const given = new URLSearchParams(location.hash.slice("#answers?".length));
  for (const name of [...FILTERS, "at"]) state[name] = given.get(name) ?? "";
  if (!NAMES.judges.includes(state.judge)) state.judge = "";
  return true;
}

function openAddress() {
  for (let place = 0; place < view.count; place++)
    if (address(view.matches[place]) === state.at) { moveTo(place); return show(); }
}

/* ---- saving the selection ---- */

function records() {
  return Array.from(view.matches.subarray(0, view.count), (i) => {
    const { benchmark, id, behavior, category } = data.prompts[data.prompt[i]], arm = armOf(i);
    const others = Object.fromEntries(NAMES.judges.map((judge, k) => [`verdict: ${judge}`, NAMES.verdict[data.others[k][i]]]));
    return { arm: arm.name, seed: arm.seed, stage: NAMES.stage[data.stage[i]], decoder: NAMES.decoder[data.decoder[i]], benchmark, prompt_id: id, category,
      behavior, prompt: data.texts[data.text[i]], sample: data.sample[i], tokens: data.tokens[i], finish: NAMES.finish[data.finish[i]],
      judge: NAMES.own[data.own[i]], verdict: NAMES.verdict[data.verdict[i]], ...others, response: data.answers[i] };
  });
}

function saveCsv() {
  const rows = records(), columns = Object.keys(rows[0] ?? {});
  save("answers.csv", "text/csv", csv(columns, rows.map((row) => columns.map((name) => row[name]))));
}

/* ---- setting up ---- */

function fillMenus() {
  const benchmarks = [...new Set(data.prompts.map((prompt) => prompt.benchmark))].sort();
  const seeds = [...new Set(NAMES.arms.map((arm) => String(arm.seed)))], arms = [...new Set(NAMES.arms.map((arm) => arm.name))];
  const any = (values, text = (value) => value) => [["", "all"], ...values.map((value) => [value, text(value)])];
  const menus = {
    arm: any(arms, (name) => LABELS[name] ?? name), seed: any(seeds), stage: any(NAMES.stage, (name) => study.stages[name] ?? name),
    benchmark: any(benchmarks), decoder: any(NAMES.decoder, (name) => study.decoders[name] ?? name),
    judge: [["", "the study’s own"], ...NAMES.judges.map((judge) => [judge, judge])],
    verdict: any(NAMES.verdict.filter((verdict) => verdict), verdictText).concat([["none", "not judged yet"]]),
  };
  ui.menus.replaceChildren(...Object.entries(menus).map(([name, choices]) =>
    menu(name[0].toUpperCase() + name.slice(1), choices[1] && choices.length > (name === "judge" ? 1 : 2) ? choices : choices.slice(0, 1), state[name], (value) => changed(name, value))));
  ui.search.value = state.q;
}

function setUpBrowser() {
  const browser = document.getElementById("browser");
  if (!browser || !NAMES.count) return;
  const wasAsked = readAddress();
  ui = {
    menus: element("div", { className: "controls" }),
    search: element("input", { type: "search", oninput: (event) => changed("q", event.target.value) }),
    status: element("p", { role: "status", className: "soft" }, "reading the answers"),
    inner: element("div", { role: "presentation" }),
    detail: element("div", { className: "detail" }),
  };
  ui.list = element("div", { className: "list", role: "listbox", tabIndex: 0, "aria-label": "Answers", onkeydown: onKey, onscroll: renderRows }, ui.inner);
  const veil = element("label", {}, element("input", { type: "checkbox", onchange: (event) => { view.open = event.target.checked; renderRows(); if (state.at) show(); } }), " show harmful answers");
  browser.append(ui.menus,
    element("div", { className: "controls" }, element("label", { className: "wide" }, "Search in prompts and answers", ui.search)),
    ui.status, ui.list,
    element("p", { className: "soft" }, element("kbd", {}, "/"), " searches, ", element("kbd", {}, "↑"), element("kbd", {}, "↓"), " move in the list, ", element("kbd", {}, "Enter"), " lays answers side by side"),
    element("p", { className: "tools" }, veil, " ",
      element("button", { type: "button", className: "small", onclick: saveCsv }, "Selection as CSV"),
      element("button", { type: "button", className: "small", onclick: () => save("answers.json", "application/json", [JSON.stringify(records())]) }, "as JSON")),
    ui.detail);
  browser.hidden = false;
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); ui.search.focus(); }
    else if (event.key === "Escape" && ui.detail.contains(document.activeElement)) ui.list.focus();
  });
  addEventListener("hashchange", () => { if (readAddress()) { fillMenus(); filter().then(openAddress); } });
  if (wasAsked) document.getElementById("answers").scrollIntoView();
  fillMenus();
  load();
}
setUpBrowser();
