"use strict";
/* What the other scripts share (the study's data, elements, menus, saving files), the buttons that save tables, printing, and
   following a running study. Text is set as text: nothing that a model wrote is ever parsed as markup. */

const study = JSON.parse(document.getElementById("study-data").textContent);
document.documentElement.classList.add("js");

/** An element with properties and children; strings become text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Text with invisible characters (controls, direction marks) spelled out, such as ⟨U+001B⟩. */
function visible(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (char) =>
    char === "\n" || char === "\t" ? char : `⟨U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

function save(name, type, parts) {
  const link = element("a", { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A cell of a CSV file, as in the report's tables: text that a spreadsheet would compute gets an apostrophe, a NUL a sign. */
function csvCell(value) {
  if (typeof value === "number") return String(value);
  let text = value == null ? "" : String(value).replaceAll("\0", "\u2400");
  if (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text))) text = "'" + text;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(columns, rows) {
  return [columns, ...rows].map((row) => row.map(csvCell).join(",") + "\n");
}

/** A labelled menu of [value, text] choices, hidden if there are fewer than two. */
function menu(label, choices, value, onchange) {
  const select = element("select", { "aria-label": label, onchange: () => onchange(select.value) },
    ...choices.map(([key, text]) => element("option", { value: key }, text)));
  select.value = value;
  return element("label", { hidden: choices.length < 2 }, label, select);
}

// Every table can be saved as CSV or LaTeX (booktabs), as it is shown.
const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$", "–": "--" };
function latex(rows) {
  const escaped = (text) => text.replace(/[&%$#_{}\\~^−–]/g, (char) => LATEX[char] ?? "\\" + char);
  const lines = rows.map((row) => row.map(escaped).join(" & ") + " \\\\");
  const columns = Math.max(...rows.map((row) => row.length));
  return [`\\begin{tabular}{l${"r".repeat(columns - 1)}}`, "\\toprule", lines[0], "\\midrule", ...lines.slice(1),
    "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
}
for (const table of document.querySelectorAll(".scroll > table")) {
  const rows = () => [...table.rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim().replace(/\s+/g, " ")));
  const name = table.getAttribute("aria-labelledby");
  table.parentElement.before(element("p", { className: "tools" },
    element("button", { type: "button", className: "small", onclick: () => save(`${name}.csv`, "text/csv", csv(rows()[0], rows().slice(1))) }, "CSV"),
    element("button", { type: "button", className: "small", onclick: () => save(`${name}.tex`, "text/plain", [latex(rows())]) }, "LaTeX")));
}

/* Closed details are not printed: open those that hold results, and close them again afterwards. */
let openedForPrint = [];
addEventListener("beforeprint", () => {
  openedForPrint = [...document.querySelectorAll("#findings details:not([open]), #tables details:not([open])")];
  for (const part of openedForPrint) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of openedForPrint) part.open = false;
});

/* A page that is served while its study runs asks for a newer version and reloads; the address keeps the reader's place. */
if (document.getElementById("live")) {
  const shown = document.documentElement.dataset.version;
  setInterval(async () => {
    const live = document.getElementById("live");
    try {
      const answer = await fetch("version" + location.search);
      const newest = answer.ok ? await answer.text() : shown;
      const isTyping = /INPUT|SELECT/.test(document.activeElement.tagName);
      if (newest !== shown && !isTyping) location.reload(); // the address keeps what is shown
      live.textContent = "still running: this page follows it";
    } catch {
      live.textContent = "the server has stopped; this page is no longer updated";
    }
  }, 3000);
}
