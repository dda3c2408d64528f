// Models with open weights: when they came, how large they are, and under which licence, one after the other.
// Data: {kinds: [name, …], models: [{name, date: "2023-02-24", when, size, active, context, licence, kind, from, data}, …]}:
// `size` and `active` count parameters (`active` where not all are used for a token), `context` tokens, `kind` is an
// index of `kinds`, `from` the name of the model whose weights were trained further, `data` what training data is public.

import { make, chooser, slider, shape, write } from "./parts.js";

const BOX = { left: 44, right: 14, top: 14, bottom: 36, width: 480, height: 320 };
const SHOWN = { years: [2018, 2026], size: [8, 12] }; // the sizes in powers of ten
const YEAR = 365.25 * 24 * 3600 * 1000;

// A date as a number of years.
export function years(date) {
  const year = Number(date.slice(0, 4));
  return year + (Date.parse(date) - Date.parse(`${year}-01-01`)) / YEAR;
}

export function inOrder(models) {
  return [...models].sort((a, b) => Date.parse(a.date) - Date.parse(b.date) || a.size - b.size);
}

// The models before one, from the nearest to the first, and those made straight from it.
export function family(models, name) {
  const before = [];
  for (let from = models.find((m) => m.name === name).from; from; from = models.find((m) => m.name === from).from) before.push(from);
  return { before, after: models.filter((m) => m.from === name).map((m) => m.name) };
}

// The model to show when `name` may have left the list: itself, else the nearest in time.
export function nearest(listed, models, name) {
  const place = listed.findIndex((m) => m.name === name);
  if (place >= 0) return place;
  const at = years(models.find((m) => m.name === name).date);
  const away = listed.map((m) => Math.abs(years(m.date) - at));
  return away.indexOf(Math.min(...away));
}

// 340 million, 6.74 billion, 70.6 billion, 405 billion.
export function size(n) {
  const [unit, word] = n >= 1e9 ? [1e9, "billion"] : [1e6, "million"];
  return `${Number((n / unit).toPrecision(3))} ${word}`;
}

export function told({ name, when, size: all, active, context, licence, data }, kind, { before, after }) {
  const used = active ? `, ${size(active)} of them used for a token` : "";
  const parts = [
    `${name}, ${when}: ${size(all)} parameters${used}; context of ${context.toLocaleString("en")} tokens.`,
    `Licence: ${licence} (${kind}).`,
    before.length ? `Trained further from ${before.join(", and that from ")}.` : "No model here is its base.",
  ];
  if (after.length) parts.push(`Trained further to ${after.join(" and ")}.`);
  if (data) parts.push(`Its training data is public: ${data}.`);
  return parts.join(" ");
}

export function mount(figure, { kinds, models }) {
  models = inOrder(models);
  const state = { kind: -1, name: models[0].name }; // kind -1 is all

  const controls = make("div", "course-controls");
  const model = slider("Model", { min: 0 }, (place) => {
    state.name = listed()[place].name;
    draw();
  });
  const licence = chooser("Licence", ["all", ...kinds], (place) => {
    state.kind = place - 1;
    state.name = listed()[nearest(listed(), models, state.name)].name;
    draw();
  });
  kinds.forEach((_, kind) => (licence.select.options[kind + 1].disabled = !models.some((m) => m.kind === kind)));
  controls.append(model.control, licence.control);
  const svg = shape(null, "svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  const marks = ["Circles", "triangles", "squares"];
  const note = make(
    "p",
    "course-caption",
    "Across: time; upwards: parameters, in powers of ten. " +
      `${kinds.map((kind, i) => `${marks[i]}: ${kind}`).join("; ")}. Lines: weights that were trained further. Ring: the model chosen.`,
  );
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(controls, svg, note, text);

  function listed() {
    return models.filter((m) => state.kind < 0 || m.kind === state.kind);
  }

  function draw() {
    const shown = listed();
    const chosen = shown.findIndex((m) => m.name === state.name);
    const { name, kind, size } = shown[chosen];
    const place = `${chosen + 1} of ${shown.length}`;
    Object.assign(model.input, { max: shown.length - 1, value: chosen });
    model.say(place);
    model.input.setAttribute("aria-valuetext", `${name} (${place})`); // the name is to be seen in the picture
    const relatives = family(models, name);
    plot(svg, models, shown, shown[chosen], relatives);
    text.textContent = told(shown[chosen], kinds[kind], relatives);
    svg.setAttribute(
      "aria-label",
      `${shown.length} models with open weights by date and parameters. The one chosen, ${name}, is number ` +
        `${chosen + 1} in time; ${shown.filter((m) => m.size > size).length} of them are larger.`,
    );
  }
  draw();
}

function plot(svg, models, shown, chosen, { before, after }) {
  svg.replaceChildren();
  const [from, to] = SHOWN.years;
  const [low, high] = SHOWN.size;
  const x = (date) => BOX.left + ((years(date) - from) / (to - from)) * (BOX.width - BOX.left - BOX.right);
  const y = (n) => BOX.height - BOX.bottom - ((Math.log10(n) - low) / (high - low)) * (BOX.height - BOX.top - BOX.bottom);
  const [left, bottom] = [BOX.left, BOX.height - BOX.bottom];
  shape(svg, "polyline", {
    points: `${left},${BOX.top} ${left},${bottom} ${BOX.width - BOX.right},${bottom}`,
    fill: "none", stroke: "currentColor", "stroke-opacity": 0.6,
  });
  for (let year = from; year < to; year += 1) write(svg, String(year), [x(`${year}-07-02`), bottom + 16]);
  for (let k = low; k <= high; k += 1) write(svg, power(k), [left - 6, y(10 ** k) + 4], "end");
  write(svg, "the year in which it came", [(left + BOX.width) / 2, BOX.height - 4]);

  const related = new Set([chosen.name, ...before, ...after]);
  for (const model of models.filter((m) => m.from)) {
    const parent = models.find((m) => m.name === model.from);
    const thick = related.has(model.name) && related.has(parent.name);
    shape(svg, "line", {
      x1: x(parent.date), y1: y(parent.size), x2: x(model.date), y2: y(model.size),
      stroke: "currentColor", "stroke-width": thick ? 2.5 : 1, "stroke-opacity": thick ? 1 : 0.4,
    });
  }
  for (const model of models) {
    const [a, b] = [x(model.date), y(model.size)];
    const look = { stroke: "currentColor", "stroke-width": 1.5, fill: model.kind === 0 ? "var(--bar)" : "none" };
    if (!shown.includes(model)) look.opacity = 0.25;
    if (model.kind === 0) shape(svg, "circle", { cx: a, cy: b, r: 4, ...look });
    else if (model.kind === 1) shape(svg, "path", { d: `M${a - 5},${b + 4} L${a + 5},${b + 4} L${a},${b - 5} Z`, ...look });
    else shape(svg, "rect", { x: a - 4, y: b - 4, width: 8, height: 8, ...look });
  }
  const [a, b] = [x(chosen.date), y(chosen.size)];
  shape(svg, "circle", { cx: a, cy: b, r: 9, fill: "none", stroke: "var(--mark, #d55e00)", "stroke-width": 3 });
  write(svg, chosen.name, [left + 10, BOX.top + 14], "start"); // up there, in the early years, nothing is in its way
}

const power = (k) => `10${[...String(k)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)]).join("")}`;
