// A question about a picture: where each word looks, and what becomes of the answer when a patch is covered.
// Data: {side, ground: colour, colours: {name: colour}, scenes: [{things: [{colour, shape, x, y, radius}, …], words: [word, …],
// answer, said, probability, looks: [[weight of each patch, …] of each word], covered: [probability, …], coveredSaid: [word, …]}, …]}.

import { make, chooser, slider, shape, percent } from "./parts.js";

const SIZE = 240;

// What lies in a patch, by the middles of the things that reach into it.
export function lying(things, patch, side) {
  const [y, x] = [(Math.floor(patch / side) + 0.5) / side, ((patch % side) + 0.5) / side];
  const there = things.filter((thing) => Math.hypot(thing.x - x, thing.y - y) < thing.radius);
  return there.map((thing) => `the ${thing.colour} ${thing.shape}`).join(", ") || "the ground";
}

// The words that look at a patch the most, with their shares.
export function lookers(words, looks, patch, most = 2) {
  return words
    .map((word, i) => [word, looks[i][patch]])
    .sort((a, b) => b[1] - a[1])
    .slice(0, most);
}

export function mount(figure, { side, ground, colours, scenes }) {
  const state = {};
  begin(0);
  const controls = make("div", "course-controls");
  const question = chooser("Question", scenes.map(({ words }) => words.join(" ")), (place) => {
    begin(place);
    fit();
    draw();
  });
  const word = slider("A word looks", { min: 0 }, (place) => change({ word: place }));
  const row = slider("Row", { min: 0, max: side - 1, value: state.row }, (place) => change({ row: place }));
  const column = slider("Column", { min: 0, max: side - 1, value: state.column }, (place) => change({ column: place }));
  controls.append(question.control, word.control, row.control, column.control);
  const svg = shape(null, "svg", { viewBox: `0 0 ${2 * SIZE + 20} ${SIZE}`, style: "margin-top: 0.5rem", role: "img" });
  const note = make(
    "p",
    "course-caption",
    "Left: the picture. Right: where the chosen word looks, the stronger the colour the more. Click a patch, or choose it by row and column; the frame is what is covered.",
  );
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(controls, svg, note, text);

  // By mouse; the sliders do the same by keyboard.
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = (2 * SIZE + 20) / box.width;
    const x = ((event.clientX - box.left) * scale) % (SIZE + 20);
    const y = (event.clientY - box.top) * scale;
    if (x >= SIZE) return;
    change({ row: Math.min(side - 1, Math.floor((y / SIZE) * side)), column: Math.floor((x / SIZE) * side) });
    fit();
  });

  // At a question's last word, and at the patch without which the answer suffers the most.
  function begin(scene) {
    const { words, covered } = scenes[scene];
    const patch = covered.indexOf(Math.min(...covered));
    Object.assign(state, { scene, word: words.length - 1, row: Math.floor(patch / side), column: patch % side });
  }

  function change(values) {
    Object.assign(state, values);
    draw();
  }

  function fit() {
    word.input.max = scenes[state.scene].words.length - 1;
    word.input.value = state.word;
    row.input.value = state.row;
    column.input.value = state.column;
  }

  function draw() {
    const scene = scenes[state.scene];
    const patch = state.row * side + state.column;
    word.say(scene.words[state.word]);
    row.say(String(state.row + 1));
    column.say(String(state.column + 1));
    const inside = lying(scene.things, patch, side);
    const strongest = lookers(scene.words, scene.looks, patch);
    const other = scene.coveredSaid[patch];
    text.textContent =
      `“${scene.words.join(" ")}” The model says ${scene.said}${scene.said === scene.answer ? "" : `, right is ${scene.answer}`}; ` +
      `it gives ${scene.answer} ${percent(scene.probability)}. ` +
      `Row ${state.row + 1}, column ${state.column + 1}, ${inside}: “${scene.words[state.word]}” looks here with ` +
      `${percent(scene.looks[state.word][patch])}, most of all “${strongest[0][0]}” (${percent(strongest[0][1])}) and ` +
      `“${strongest[1][0]}” (${percent(strongest[1][1])}). With this patch covered ` +
      `${scene.answer} has ${percent(scene.covered[patch])}${other === scene.said ? "" : `, and the model says ${other}`}.`;
    svg.replaceChildren();
    picture(svg, scene.things, { ground, colours });
    heat(svg, scene.looks[state.word], side);
    frames(svg, patch, side);
    const shown = scene.things.map((thing) => `a ${thing.colour} ${thing.shape}`).join(", ");
    svg.setAttribute("aria-label", `A picture of ${shown}, and where the word “${scene.words[state.word]}” looks in it.`);
  }
  fit();
  draw();
}

function picture(svg, things, { ground, colours }) {
  shape(svg, "rect", { x: 0, y: 0, width: SIZE, height: SIZE, fill: ground });
  for (const thing of things) {
    const [x, y, r] = [thing.x * SIZE, thing.y * SIZE, thing.radius * SIZE];
    shape(svg, "path", { d: outline(thing.shape, x, y, r), fill: colours[thing.colour] });
  }
}

// The shapes as lab.scenes renders them.
function outline(kind, x, y, r) {
  if (kind === "circle") return `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`;
  if (kind === "square") return `M${x - 0.85 * r},${y - 0.85 * r}h${1.7 * r}v${1.7 * r}h${-1.7 * r}z`;
  if (kind === "triangle") {
    const half = (0.44 * r + 0.44 * 0.75 * r) / 0.9;
    return `M${x},${y - r}L${x + half},${y + 0.75 * r}H${x - half}z`;
  }
  const arm = 0.33 * r;
  return `M${x - r},${y - arm}h${2 * r}v${2 * arm}h${-2 * r}zM${x - arm},${y - r}h${2 * arm}v${2 * r}h${-2 * arm}z`;
}

function heat(svg, weights, side) {
  const [cell, most] = [SIZE / side, Math.max(...weights)];
  shape(svg, "rect", { x: SIZE + 20, y: 0, width: SIZE, height: SIZE, fill: "none", stroke: "currentColor", "stroke-opacity": 0.4 });
  weights.forEach((weight, patch) => {
    shape(svg, "rect", {
      x: SIZE + 20 + (patch % side) * cell, y: Math.floor(patch / side) * cell, width: cell, height: cell,
      fill: "var(--bar)", "fill-opacity": (weight / most).toFixed(3),
    });
  });
}

function frames(svg, patch, side) {
  const cell = SIZE / side;
  for (const left of [0, SIZE + 20]) {
    shape(svg, "rect", {
      x: left + (patch % side) * cell, y: Math.floor(patch / side) * cell, width: cell, height: cell,
      fill: "none", stroke: "var(--mark, #d55e00)", "stroke-width": 3,
    });
  }
}
