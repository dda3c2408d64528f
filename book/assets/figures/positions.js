// Sinusoidal positions (Vaswani 2017, section 3.5), to explore.
// Data, all optional: {d_model, base, length, position}.

import { chooser, slider, shape } from "./parts.js";

// One row of the table: PE[pos, 2i] = sin(pos / base^(2i/d)), PE[pos, 2i+1] = cos(the same).
export function encoding(position, dModel, base = 10000) {
  return Array.from({ length: dModel }, (_, j) => {
    const angle = position / base ** ((j - (j % 2)) / dModel);
    return j % 2 === 0 ? Math.sin(angle) : Math.cos(angle);
  });
}

export function table(length, dModel, base = 10000) {
  return Array.from({ length }, (_, position) => encoding(position, dModel, base));
}

// The dot product of one position with every position.
export function products(rows, position) {
  return rows.map((row) => row.reduce((sum, value, j) => sum + value * rows[position][j], 0));
}

export function mount(figure, { d_model = 32, base = 10000, length = 64, position = 8 } = {}) {
  const state = { dModel: d_model, base, position };
  const place = slider("Position", { min: 0, max: length - 1, value: position }, (v) => {
    state.position = v;
    draw();
  });
  const controls = document.createElement("div");
  controls.className = "course-controls";
  controls.append(
    choose("Dimensions d", [16, 32, 64], "dModel"),
    choose("Base", [10, 100, 1000, 10000], "base"),
    place.control,
  );

  const canvas = document.createElement("canvas");
  canvas.className = "position-map";
  canvas.setAttribute("role", "img");
  const mapCaption = caption("Rows: positions, downwards. Columns: dimensions. Orange is −1, blue is +1; the marked row is the chosen position.");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("viewBox", `0 0 ${length * 10} 120`);
  const productCaption = caption("The dot product of the chosen position with every position.");
  const text = document.createElement("p");
  text.className = "course-state";
  text.setAttribute("aria-live", "polite");
  figure.append(controls, canvas, mapCaption, svg, productCaption, text);

  function draw() {
    place.say(String(state.position));
    const rows = table(length, state.dModel, state.base);
    const dots = products(rows, state.position);
    paint(canvas, rows, state.position);
    plot(svg, dots, state.position);
    const others = dots.filter((_, i) => i !== state.position);
    const lowest = dots.indexOf(Math.min(...dots));
    const next = dots[state.position + 1] ?? dots[state.position - 1];
    canvas.setAttribute("aria-label", `The encodings of ${length} positions in ${state.dModel} dimensions: fast waves in the first columns, slow ones in the last.`);
    svg.setAttribute("aria-label", `Dot products with position ${state.position}: from ${Math.min(...dots).toFixed(2)} to ${Math.max(...dots).toFixed(2)}.`);
    text.textContent =
      `Position ${state.position}, d = ${state.dModel}, base ${state.base}: with itself the product is ` +
      `${dots[state.position].toFixed(2)} (d/2), with a neighbour ${next.toFixed(2)}, at most ` +
      `${Math.max(...others).toFixed(2)} with another position, least ${dots[lowest].toFixed(2)} with position ${lowest}.`;
  }

  function choose(name, values, key) {
    const chosen = (place) => {
      state[key] = values[place];
      draw();
    };
    return chooser(name, values, chosen, values.indexOf(state[key])).control;
  }

  draw();
}

function caption(text) {
  const element = document.createElement("p");
  element.className = "course-caption";
  element.textContent = text;
  return element;
}

// One pixel a number, enlarged by the style sheet; the same colours in the light and the dark theme.
function paint(canvas, rows, marked) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  canvas.style.height = `${rows.length * 4}px`;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, n) => {
    const far = value < 0 ? [213, 94, 0] : [0, 114, 178];
    const amount = Math.abs(value);
    far.forEach((c, channel) => (image.data[4 * n + channel] = 245 + (c - 245) * amount));
    const row = Math.floor(n / canvas.width);
    image.data[4 * n + 3] = row === marked ? 255 : 150;
  });
  context.putImageData(image, 0, 0);
}

function plot(svg, values, marked) {
  const low = Math.min(0, ...values);
  const high = Math.max(...values);
  const y = (v) => 115 - (110 * (v - low)) / (high - low);
  svg.replaceChildren();
  shape(svg, "line", { x1: 0, x2: values.length * 10, y1: y(0), y2: y(0), stroke: "currentColor", "stroke-opacity": 0.5 });
  values.forEach((value, i) => {
    const [top, bottom] = [Math.min(y(0), y(value)), Math.max(y(0), y(value))];
    shape(svg, "rect", { x: i * 10 + 1, width: 8, y: top, height: bottom - top, fill: i === marked ? "var(--mark, #d55e00)" : "var(--bar)" });
  });
}
