// PPO's clipped objective for one token (Schulman 2017, Eq. 7), as a function of the ratio and the advantage.
// Data: {} or {ratio, advantage, epsilon}, where to begin.

import { make, slider, shape, write } from "./parts.js";

// The objective, its two candidates, and its slope in the ratio.
export function objective(ratio, advantage, epsilon) {
  const plain = ratio * advantage;
  const clipped = Math.min(Math.max(ratio, 1 - epsilon), 1 + epsilon) * advantage;
  return { plain, clipped, value: Math.min(plain, clipped), slope: plain <= clipped ? advantage : 0 };
}

const RANGES = { ratio: [0, 2, 0.05], advantage: [-2, 2, 0.25], epsilon: [0.05, 0.5, 0.05] };
const BOX = { left: 44, right: 16, top: 14, bottom: 38, width: 480, height: 280 };

export function mount(figure, start = {}) {
  const state = { ratio: 1.3, advantage: 1, epsilon: 0.2, ...start };
  const controls = make("div", "course-controls");
  const says = [
    chosen("Ratio r", "ratio"),
    chosen("Advantage A", "advantage"),
    chosen("Clip range ε", "epsilon"),
  ];
  const svg = shape(null, "svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  const note = make(
    "p",
    "course-caption",
    "Across: the ratio r. Thick: the objective. Dashed: r·A. Dotted: the clipped ratio times A. Grey: 1 − ε to 1 + ε. Circle: your choice.",
  );
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(controls, svg, note, text);

  function chosen(name, key) {
    const [min, max, step] = RANGES[key];
    const { control, say } = slider(name, { min, max, step, value: state[key] }, (value) => {
      state[key] = value;
      draw();
    });
    controls.append(control);
    return () => say(number(state[key]));
  }

  function draw() {
    for (const say of says) say();
    const { ratio, advantage, epsilon } = state;
    const at = objective(ratio, advantage, epsilon);
    plot(svg, state, at);
    text.textContent = `r·A = ${number(at.plain)}, clipped ${number(at.clipped)}; the objective is the smaller, ${number(at.value)}. ${meaning(at)}`;
    svg.setAttribute(
      "aria-label",
      `The clipped objective against the ratio from 0 to 2, for an advantage of ${number(advantage)} and ε = ${number(epsilon)}. ` +
        `At a ratio of ${number(ratio)} it is ${number(at.value)}, with slope ${number(at.slope)}.`,
    );
  }

  function meaning({ slope }) {
    const { ratio, advantage } = state;
    if (advantage === 0) return "The token was neither better nor worse than expected: nothing pushes.";
    if (slope === 0) {
      const done = advantage > 0 ? "already likelier by more than ε, and is pushed no further up" : "already rarer by more than ε, and is pushed no further down";
      return `Slope 0: the token is ${done}.`;
    }
    const way = advantage > 0 ? "up" : "down";
    const wrong = advantage > 0 ? ratio < 1 - state.epsilon : ratio > 1 + state.epsilon;
    const why = wrong ? " It has moved the wrong way, and the clip does not keep it there." : "";
    return `Slope ${number(slope)}: the token's probability is pushed ${way}.${why}`;
  }

  draw();
}

function plot(svg, { ratio, advantage, epsilon }, at) {
  svg.replaceChildren();
  const [low, high] = RANGES.ratio;
  const largest = Math.max(1, 2 * Math.abs(advantage));
  const bounds = advantage < 0 ? [-largest, 0.25 * largest] : [-0.25 * largest, largest];
  const x = (r) => BOX.left + ((r - low) / (high - low)) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.top + ((bounds[1] - v) / (bounds[1] - bounds[0])) * (BOX.height - BOX.top - BOX.bottom);
  const curve = (key, attributes) => {
    const ratios = [low, 1 - epsilon, 1 + epsilon, high];
    const points = ratios.map((r) => `${x(r).toFixed(1)},${y(objective(r, advantage, epsilon)[key]).toFixed(1)}`);
    shape(svg, "polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", ...attributes });
  };
  shape(svg, "rect", {
    x: x(1 - epsilon), y: BOX.top, width: x(1 + epsilon) - x(1 - epsilon), height: BOX.height - BOX.top - BOX.bottom,
    fill: "currentColor", "fill-opacity": 0.08,
  });
  shape(svg, "path", { d: `M${x(low)},${y(0)}H${x(high)}`, stroke: "currentColor", "stroke-opacity": 0.5 });
  for (const r of [0, 0.5, 1, 1.5, 2]) write(svg, String(r), [x(r), BOX.height - BOX.bottom + 18], "middle");
  write(svg, "ratio r", [x(1), BOX.height - 4], "middle");
  for (const v of [bounds[0], 0, bounds[1]]) write(svg, number(v), [BOX.left - 6, y(v) + 4], "end");
  curve("value", { "stroke-width": 5, stroke: "var(--bar)", "stroke-opacity": 0.75 });
  curve("plain", { "stroke-width": 1.5, "stroke-dasharray": "6 4" });
  curve("clipped", { "stroke-width": 1.5, "stroke-dasharray": "1.5 3" });
  shape(svg, "circle", { cx: x(ratio), cy: y(at.value), r: 7, fill: "none", stroke: "var(--mark, #d55e00)", "stroke-width": 3 });
}

// Two decimals, a real minus, and no zero with a sign.
function number(value) {
  const text = value.toFixed(2);
  return text === "-0.00" ? "0.00" : text.replace("-", "−");
}
