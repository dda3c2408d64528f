// Learnt and gold reward against the divergence along training, with answers to read at each point.
// Data: {questions: [{text, truth}, …], methods: [name, …], seeds: [n, …], runs: [[[{step, kl, reward, gold, right,
// refusals, said: [[text, verdict, gold], …]}, …], …], …]}: runs[method][seed][point], `said` follows `questions`.

import { make, around, chooser, slider, shape, percent, signed, head, write } from "./parts.js";

// How far both rewards have come from the first point.
export function gains(points) {
  return points.map(({ reward, gold }) => ({ reward: reward - points[0].reward, gold: gold - points[0].gold }));
}

const BOX = { left: 40, right: 64, top: 12, bottom: 38, width: 480, height: 240 };

export function mount(figure, { questions, methods, seeds, runs }) {
  const state = { method: 0, seed: 0, point: 0 };
  const points = () => runs[state.method][state.seed];

  const controls = make("div", "course-controls");
  const training = slider("Training step", { min: 0, value: 0 }, (point) => {
    state.point = point;
    draw();
  });
  controls.append(
    choose("Method", methods, "method"),
    choose("Seed", seeds, "seed"),
    training.control,
  );
  const svg = shape(null, "svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  const note = make(
    "p",
    "course-caption",
    "Across: KL divergence from the fine-tuned model, in nats. Upwards: gain over it. Solid: gold reward. Dashed: learnt reward. Circles: your choice.",
  );
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  const table = make("table", "course-table");
  figure.append(controls, svg, note, text, table);

  function choose(name, names, key) {
    return chooser(name, names, (place) => {
      state[key] = place;
      state.point = Math.min(state.point, points().length - 1);
      draw();
    }).control;
  }

  function draw() {
    const all = points();
    const { step, kl, right, refusals } = all[state.point];
    const gain = gains(all)[state.point];
    training.input.max = all.length - 1;
    training.input.value = state.point;
    training.say(`${step} of ${all.at(-1).step}`);
    text.textContent =
      `Step ${step} of ${methods[state.method]}, seed ${seeds[state.seed]}: ${kl.toFixed(2)} nats from the start. ` +
      `Learnt reward ${signed(gain.reward)}, gold reward ${signed(gain.gold)}. ` +
      `Right ${percent(right)}, refusals ${percent(refusals)}.`;
    plot(svg, runs[state.method].flat(), all, state.point);
    svg.setAttribute("aria-label", `Gains in learnt and gold reward against the divergence. ${text.textContent}`);
    table.replaceChildren(
      around("thead", around("tr", ...["Question", "Answer", "Judged", "Gold"].map((name) => head(name, "col")))),
      around("tbody", ...questions.map(row)),
    );
  }

  function row({ text: question, truth }, i) {
    const [answer, verdict, gold] = points()[state.point].said[i];
    const asked = head(`${question} `, "row");
    asked.append(make("span", "course-caption", truth));
    return around("tr", asked, make("td", "", answer), make("td", "", verdict), make("td", "", signed(gold)));
  }

  draw();
}

function plot(svg, scale, points, chosen) {
  svg.replaceChildren();
  const own = gains(points);
  const values = own.flatMap(({ reward, gold }) => [reward, gold]);
  const [low, high] = [Math.min(-0.5, ...values), Math.max(2, ...values)];
  const far = Math.max(1, ...scale.map(({ kl }) => kl));
  const x = (kl) => BOX.left + (kl / far) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.top + ((high - v) / (high - low)) * (BOX.height - BOX.top - BOX.bottom);
  shape(svg, "path", { d: `M${x(0)},${y(0)}H${x(far)}`, stroke: "currentColor", "stroke-opacity": 0.5 });
  const every = far > 12 ? 5 : far > 4 ? 2 : far > 1.5 ? 1 : 0.2;
  for (let k = 0; k <= far + 1e-9; k += every) write(svg, String(Number(k.toFixed(1))), [x(k), BOX.height - BOX.bottom + 18], "middle");
  write(svg, "divergence, nats", [(x(0) + x(far)) / 2, BOX.height - 4], "middle");
  for (let v = Math.ceil(low); v <= high; v += 1) write(svg, String(v).replace("-", "−"), [BOX.left - 8, y(v) + 4], "end");
  const last = own.length - 1;
  const close = Math.abs(y(own[last].reward) - y(own[last].gold)) < 14;
  for (const [key, name, dash] of [["reward", "learnt", "5 4"], ["gold", "gold", "none"]]) {
    const path = own.map((gain, i) => `${x(points[i].kl).toFixed(1)},${y(gain[key]).toFixed(1)}`).join(" ");
    const stroke = key === "gold" ? "var(--bar)" : "currentColor";
    shape(svg, "polyline", { points: path, fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash });
    shape(svg, "circle", { cx: x(points[chosen].kl), cy: y(own[chosen][key]), r: 6, fill: "none", stroke: "var(--mark, #d55e00)", "stroke-width": 3 });
    const higher = key === "gold" ? own[last].gold > own[last].reward : own[last].reward >= own[last].gold;
    write(svg, name, [x(points[last].kl) + 10, y(own[last][key]) + (close ? (higher ? -4 : 12) : 4)], "start");
  }
}
