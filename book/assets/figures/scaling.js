// Chinchilla's loss L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann 2022), to explore.
// Data: {fits: [{name, E, A, B, alpha, beta}, …], models: [{name, N, D}, …]}.

import { chooser, slider, shape } from "./parts.js";

export const HOFFMANN = { E: 1.69, A: 406.4, B: 410.7, alpha: 0.34, beta: 0.28 };

// N in parameters, D in tokens, the loss in nats per token.
export function loss({ E, A, B, alpha, beta }, N, D) {
  return E + A / N ** alpha + B / D ** beta;
}

// The N and D that make the loss smallest under C = 6ND.
export function optimum({ A, B, alpha, beta }, C) {
  const G = ((alpha * A) / (beta * B)) ** (1 / (alpha + beta));
  const N = G * (C / 6) ** (beta / (alpha + beta));
  return { N, D: C / (6 * N) };
}

const SHOWN = { N: [7, 13], D: [9, 14], C: [18, 26] }; // powers of ten
const BOX = { left: 46, right: 20, top: 14, bottom: 38, width: 480, height: 300 };

export function mount(figure, { fits = [{ name: "Hoffmann 2022", ...HOFFMANN }], models = [] } = {}) {
  const state = { N: 10.5, D: 11.5, fit: 0 };
  const controls = document.createElement("div");
  controls.className = "course-controls";
  const N = chosen("Parameters N", SHOWN.N, () => state.N, (v) => (state.N = v));
  const D = chosen("Tokens D", SHOWN.D, () => state.D, (v) => (state.D = v));
  // Moving C keeps the model on the optimum of its compute.
  const C = chosen("Compute C", SHOWN.C, compute, (v) => follow(10 ** v));
  controls.append(N.control, D.control, C.control);
  const models_ = chooser("Model", ["none", ...models.map((m) => m.name)], (i) => {
    if (i > 0) Object.assign(state, { N: Math.log10(models[i - 1].N), D: Math.log10(models[i - 1].D) });
    draw();
  });
  const fits_ = chooser("Constants", fits.map((f) => f.name), (i) => {
    state.fit = i;
    draw();
  });
  controls.append(models_.control, fits_.control);

  const svg = shape(null, "svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  svg.classList.add("scaling-map");
  const note = document.createElement("p");
  note.className = "course-caption";
  note.textContent =
    "Across: parameters; upwards: tokens; both in powers of ten. Dotted lines: equal compute. Thick line: the optimum for each compute. Squares: published models. Circle: your choice.";
  const text = document.createElement("p");
  text.className = "course-state";
  text.setAttribute("aria-live", "polite");
  figure.append(controls, svg, note, text);

  function compute() {
    return Math.log10(6) + state.N + state.D;
  }

  function follow(budget) {
    const best = optimum(fits[state.fit], budget);
    state.N = within(Math.log10(best.N), SHOWN.N);
    state.D = within(Math.log10(best.D), SHOWN.D);
  }

  function chosen(name, [min, max], read, set) {
    const { control, input, say } = slider(name, { min, max, step: 0.05 }, (value) => {
      models_.select.selectedIndex = 0;
      set(value);
      draw();
    });
    const show = () => {
      input.value = read();
      say(plain(10 ** read()));
    };
    return { control, show };
  }

  function draw() {
    for (const control of [N, D, C]) control.show();
    const fit = fits[state.fit];
    const [n, d] = [10 ** state.N, 10 ** state.D];
    const budget = 6 * n * d;
    const best = optimum(fit, budget);
    plot(svg, fit, models, state, best);
    const [here, there] = [loss(fit, n, d), loss(fit, best.N, best.D)];
    text.textContent =
      `${plain(n)} parameters on ${plain(d)} tokens: ${ratio(d / n)} tokens for each parameter, ` +
      `${plain(budget)} operations, predicted loss ${here.toFixed(3)}. ` +
      `The same operations are best spent on ${plain(best.N)} parameters and ${plain(best.D)} tokens ` +
      `(${ratio(best.D / best.N)} for each): ${there.toFixed(3)}.`;
    svg.setAttribute(
      "aria-label",
      `Parameters against tokens, with the line of best models and ${models.length} published ones. ` +
        `The chosen model lies at ${plain(n)} parameters and ${plain(d)} tokens, the best for its compute at ${plain(best.N)} and ${plain(best.D)}.`,
    );
  }
  draw();
}

function plot(svg, fit, models, state, best) {
  svg.replaceChildren();
  const x = (v) => BOX.left + ((v - SHOWN.N[0]) / (SHOWN.N[1] - SHOWN.N[0])) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.height - BOX.bottom - ((v - SHOWN.D[0]) / (SHOWN.D[1] - SHOWN.D[0])) * (BOX.height - BOX.top - BOX.bottom);
  const path = (points, attributes) =>
    shape(svg, "polyline", {
      points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "),
      fill: "none", stroke: "currentColor", ...attributes,
    });
  const label = (textContent, at, attributes) => {
    const node = shape(svg, "text", { x: at[0], y: at[1], fill: "currentColor", "font-size": 12, ...attributes });
    node.textContent = textContent;
  };
  path([[SHOWN.N[0], SHOWN.D[1]], [SHOWN.N[0], SHOWN.D[0]], [SHOWN.N[1], SHOWN.D[0]]], { "stroke-opacity": 0.6 });
  for (let k = SHOWN.N[0]; k <= SHOWN.N[1]; k += 1) label(power(k), [x(k), BOX.height - BOX.bottom + 16], { "text-anchor": "middle" });
  for (let k = SHOWN.D[0]; k <= SHOWN.D[1]; k += 1) label(power(k), [BOX.left - 6, y(k) + 4], { "text-anchor": "end" });
  label("parameters N", [x((SHOWN.N[0] + SHOWN.N[1]) / 2), BOX.height - 4], { "text-anchor": "middle" });

  // Equal compute: log D = log C - log 6 - log N, a falling straight line, cut to the box.
  for (let c = 17; c <= 27; c += 2) {
    const sum = c - Math.log10(6);
    const from = Math.max(SHOWN.N[0], sum - SHOWN.D[1]);
    const to = Math.min(SHOWN.N[1], sum - SHOWN.D[0]);
    if (from < to) path([[from, sum - from], [to, sum - to]], { "stroke-opacity": 0.5, "stroke-dasharray": "2 4" });
  }
  const optima = [];
  for (let c = 15; c <= 30; c += 0.1) {
    const { N, D } = optimum(fit, 10 ** c);
    const point = [Math.log10(N), Math.log10(D)];
    if (inside(point[0], SHOWN.N) && inside(point[1], SHOWN.D)) optima.push(point);
  }
  path(optima, { "stroke-width": 3, stroke: "var(--bar)" });
  const now = [state.N, state.D];
  const goal = [within(Math.log10(best.N), SHOWN.N), within(Math.log10(best.D), SHOWN.D)];
  path([now, goal], { "stroke-width": 1.5, "stroke-dasharray": "5 3" });
  for (const { name, N, D, left } of models) {
    const [a, b] = [x(Math.log10(N)), y(Math.log10(D))];
    shape(svg, "rect", { x: a - 4, y: b - 4, width: 8, height: 8, fill: "currentColor" });
    label(name, left ? [a - 9, b + 4] : [a + 8, b + 4], { "text-anchor": left ? "end" : "start" });
  }
  shape(svg, "circle", { cx: x(now[0]), cy: y(now[1]), r: 7, fill: "none", stroke: "var(--mark, #d55e00)", "stroke-width": 3 });
}

const inside = (v, [low, high]) => v >= low && v <= high;
const within = (v, [low, high]) => Math.min(high, Math.max(low, v));
const power = (k) => `10${[...String(k)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)]).join("")}`;
const ratio = (r) => (r < 10 ? r.toFixed(1) : Math.round(r).toLocaleString("en"));

// 31.6 billion rather than 3.16e10; operations in powers of ten.
export function plain(v) {
  for (const [size, name] of [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]]) {
    if (v >= size * 0.9995 && v < size * 999.5) {
      const q = v / size;
      return `${q < 9.995 ? q.toFixed(2) : q < 99.95 ? q.toFixed(1) : q.toFixed(0)} ${name}`;
    }
  }
  const k = Math.floor(Math.log10(v) + 1e-12);
  return `${(v / 10 ** k).toFixed(1)} × ${power(k)}`;
}
