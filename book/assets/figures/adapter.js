// A fine-tuning as an adapter W₀ + (α / r) · ΔWᵣ, turned up and down: the loss, and answers to read, for each rank and α.
// Data: {questions: [text, …], ranks: [r, …], alphas: [α, …], shares: [share of the weights that is trained, …],
// tuned: loss, losses: [[loss, …], …], golds: [[gold, …], …], said: [[[[text, verdict], …], …], …]}, by rank, then by α.

import { make, around, slider, shape, signed, head, write } from "./parts.js";

const BOX = { left: 40, right: 16, top: 14, bottom: 38, width: 480, height: 240 };

// α / r as one reads it: 8, 1, 1/4.
export function scale(alpha, r) {
  return alpha === 0 || alpha >= r ? String(alpha / r) : `1/${r / alpha}`;
}

// What the scale does to the change that fine-tuning found.
export function meaning(alpha, r) {
  if (alpha === 0) return "The matrices are those of the base.";
  if (alpha === r) return "The change has the size that fine-tuning gave it.";
  const times = alpha > r ? `${alpha / r} times` : `1/${r / alpha} of`;
  return `The change has ${times} the size that fine-tuning gave it.`;
}

export function mount(figure, { questions, ranks, alphas, shares, tuned, losses, golds, said }) {
  const state = { r: ranks.indexOf(4), alpha: alphas.indexOf(4) };
  const controls = make("div", "course-controls");
  const says = [
    chosen("Rank r", "r", ranks, (r, i) => `${r}, ${(100 * shares[i]).toFixed(0)} % trained`),
    chosen("α", "alpha", alphas, String),
  ];
  const svg = shape(null, "svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  const note = make(
    "p",
    "course-caption",
    "Across: α / r, doubled from mark to mark; upwards: loss on held-out responses, in nats. Thick: the rank chosen; thin: the others. " +
      "Dashed: fine-tuned, uncut. Circle: your choice.",
  );
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  const table = make("table", "course-table");
  figure.append(controls, svg, note, text, table);

  function chosen(name, key, values, word) {
    const { control, say } = slider(name, { min: 0, max: values.length - 1, value: state[key] }, (place) => {
      state[key] = place;
      draw();
    });
    controls.append(control);
    return () => say(word(values[state[key]], state[key]));
  }

  function draw() {
    for (const say of says) say();
    const [r, alpha] = [ranks[state.r], alphas[state.alpha]];
    const loss = losses[state.r][state.alpha];
    text.textContent =
      `r = ${r}, α = ${alpha}, α / r = ${scale(alpha, r)}. ${meaning(alpha, r)} ` +
      `Loss ${loss.toFixed(2)} (fine-tuned ${tuned.toFixed(2)}), gold reward ${signed(golds[state.r][state.alpha])}.`;
    plot(svg, { ranks, alphas, losses, tuned }, state);
    svg.setAttribute("aria-label", `The loss against α / r, a line for each of ${ranks.length} ranks. ${text.textContent}`);
    table.replaceChildren(
      around("thead", around("tr", ...["Question", "Answer", "Judged"].map((name) => head(name, "col")))),
      around(
        "tbody",
        ...questions.map((question, i) => {
          const [answer, verdict] = said[state.r][state.alpha][i];
          return around("tr", head(question, "row"), make("td", "", answer), make("td", "", verdict));
        }),
      ),
    );
  }
  draw();
}

function plot(svg, { ranks, alphas, losses, tuned }, chosen) {
  svg.replaceChildren();
  const turned = alphas.filter((alpha) => alpha > 0);
  const [low, high] = [Math.log2(turned[0] / ranks.at(-1)), Math.log2(turned.at(-1) / ranks[0])];
  // α = 0 stands left of all others.
  const x = (ratio) => {
    const place = ratio === 0 ? 0 : Math.log2(ratio) - low + 2;
    return BOX.left + (place / (high - low + 2)) * (BOX.width - BOX.left - BOX.right);
  };
  const top = Math.ceil(Math.min(12, Math.max(...losses.flat())));
  const y = (loss) => BOX.top + (1 - Math.min(loss, top) / top) * (BOX.height - BOX.top - BOX.bottom);
  shape(svg, "path", {
    d: `M${BOX.left},${BOX.top}V${y(0)}H${BOX.width - BOX.right}`,
    stroke: "currentColor", "stroke-opacity": 0.5, fill: "none",
  });
  shape(svg, "path", {
    d: `M${BOX.left},${y(tuned)}H${BOX.width - BOX.right}`,
    stroke: "currentColor", "stroke-dasharray": "4 4", fill: "none",
  });
  for (let loss = 0; loss <= top; loss += top > 6 ? 2 : 1) write(svg, String(loss), [BOX.left - 8, y(loss) + 4], "end");
  write(svg, "0", [x(0), BOX.height - BOX.bottom + 18], "middle");
  for (let power = low; power <= high; power += 2) {
    write(svg, power < 0 ? `1/${2 ** -power}` : String(2 ** power), [x(2 ** power), BOX.height - BOX.bottom + 18], "middle");
  }
  write(svg, "α / r", [(BOX.left + BOX.width) / 2, BOX.height - 4], "middle");
  ranks.forEach((r, i) => {
    const points = alphas.map((alpha, j) => `${x(alpha / r).toFixed(1)},${y(losses[i][j]).toFixed(1)}`).join(" ");
    const look = i === chosen.r ? { stroke: "var(--bar)", "stroke-width": 3 } : { stroke: "currentColor", "stroke-opacity": 0.4 };
    shape(svg, "polyline", { points, fill: "none", "stroke-width": 1, ...look });
  });
  shape(svg, "circle", {
    cx: x(alphas[chosen.alpha] / ranks[chosen.r]), cy: y(losses[chosen.r][chosen.alpha]),
    r: 7, fill: "none", stroke: "var(--mark, #d55e00)", "stroke-width": 3,
  });
}
