// Rank answers, and a reward model that is linear in a few named features learns from the rankings, here in the page.
// Data: {features: [name, …], checked: name of the feature that can be hidden, tried: [n, …], rounds: [{question,
// truth, answers: [{text, f: [value of each feature, …], gold}, …]}, …], fresh: [[[f, gold], …], …]}: `fresh` holds many
// answers to each of some other questions, the same number to each.

import { make, around, shape, percent, signed, write } from "./parts.js";

const SPREAD = 2; // standard deviation of the normal prior on every weight

// The weights w that minimise Σ log(1 + exp(-w·d)) + |w|²/(2·SPREAD²) over the differences d = better - worse: Bradley
// and Terry's model. Each step is bounded feature by feature so that it cannot overshoot: the curvature of the logistic
// is at most 1/4, and (Σ d_j)² at most (number of features)·Σ d_j².
export function fit(differences, features, steps = 400) {
  const prior = 1 / SPREAD ** 2;
  const sizes = Array(features).fill(0);
  for (const d of differences) d.forEach((v, j) => (sizes[j] += v * v));
  const rates = sizes.map((size) => 1 / ((features * size) / 4 + prior));
  const weights = Array(features).fill(0);
  for (let step = 0; step < steps; step += 1) {
    const slope = weights.map((w) => prior * w);
    for (const d of differences) {
      const surprise = 1 / (1 + Math.exp(reward(weights, d)));
      d.forEach((v, j) => (slope[j] -= surprise * v));
    }
    slope.forEach((s, j) => (weights[j] -= rates[j] * s));
  }
  return weights;
}

export function reward(weights, f) {
  return weights.reduce((sum, w, j) => sum + w * f[j], 0);
}

// Every pair of a ranking, best first, as better - worse.
export function pairs(ranked) {
  return ranked.flatMap((better, i) => ranked.slice(i + 1).map((worse) => better.map((v, j) => v - worse[j])));
}

// The share of pairs with different gold rewards that the rewards order as gold does; equal rewards count one half.
export function agreement(rewards, gold) {
  let [right, all] = [0, 0];
  for (let i = 0; i < gold.length; i += 1) {
    for (let j = i + 1; j < gold.length; j += 1) {
      if (gold[i] === gold[j]) continue;
      const product = (rewards[i] - rewards[j]) * (gold[i] - gold[j]);
      right += product > 0 ? 1 : product === 0 ? 0.5 : 0;
      all += 1;
    }
  }
  return { right, all };
}

// Mean reward and gold reward of the best of n of these answers by reward, drawn without putting back. Among equals
// chance decides.
export function bestOf(n, rewards, gold) {
  const order = rewards.map((_, i) => i).sort((a, b) => rewards[a] - rewards[b]);
  const found = { reward: 0, gold: 0 };
  let below = 0; // the chance that the best is one of those passed so far
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end < order.length && rewards[order[end]] === rewards[order[start]]) end += 1;
    const upTo = chosenFrom(end, n, order.length);
    const equals = order.slice(start, end);
    found.reward += (upTo - below) * rewards[order[start]];
    found.gold += (upTo - below) * (equals.reduce((sum, i) => sum + gold[i], 0) / equals.length);
    [below, start] = [upTo, end];
  }
  return found;
}

// The chance that n of `all` things, drawn without putting back, all come from k of them.
function chosenFrom(k, n, all) {
  let chance = 1;
  for (let i = 0; i < n; i += 1) chance *= Math.max(0, k - i) / (all - i);
  return chance;
}

export function mount(figure, { features, checked, tried, rounds, fresh }) {
  const hidden = features.indexOf(checked);
  const state = { picked: [], rankings: [], sees: true };
  const random = generator(1);

  const question = make("p", "preferences-question");
  const answers = make("ol", "preferences-answers");
  const buttons = make("div", "preferences-buttons");
  buttons.append(
    button("Take the last pick back", () => state.picked.pop() ?? state.rankings.pop()),
    button("Let people rank 20", () => {
      state.picked = [];
      for (let i = 0; i < 20; i += 1) state.rankings.push(byPeople(round().answers));
    }),
    button("Forget all rankings", () => Object.assign(state, { picked: [], rankings: [] })),
  );
  const sees = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
  sees.addEventListener("change", () => {
    state.sees = sees.checked;
    draw();
  });
  const choice = around("label", sees, make("span", "", `The reward model can see “${checked}”`));
  choice.className = "preferences-choice";
  const weights = make("div", "preferences-weights");
  weights.setAttribute("role", "list");
  weights.setAttribute("aria-label", "Learnt weights");
  const svg = shape(null, "svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  const note = make(
    "p",
    "course-caption",
    "Across: how many new answers the best is taken from, by the learnt reward. Upwards: mean reward, against a single " +
      "answer. Solid: gold reward. Dashed: learnt reward.",
  );
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(question, answers, buttons, choice, weights, svg, note, text);

  function round() {
    return rounds[state.rankings.length % rounds.length];
  }

  // As the people of this world rank: each answer's worth, with Gumbel noise on top, best first.
  function byPeople(answers) {
    const worth = new Map(answers.map(({ f, gold }) => [f, gold - Math.log(-Math.log(random()))]));
    return [...worth.keys()].sort((a, b) => worth.get(b) - worth.get(a));
  }

  function pick(i) {
    const at = state.picked.indexOf(i);
    if (at >= 0) state.picked.splice(at);
    else state.picked.push(i);
    const all = round().answers;
    if (state.picked.length === all.length - 1) {
      const last = all.findIndex((_, j) => !state.picked.includes(j));
      state.rankings.push([...state.picked, last].map((j) => all[j].f));
      state.picked = [];
    }
    draw();
    answers.querySelector('[aria-pressed="false"]').focus();
  }

  function draw() {
    const { question: asked, truth, answers: all } = round();
    question.replaceChildren(make("code", "", asked), ` ${truth} Choose the best answer, then the next best.`);
    answers.replaceChildren(...all.map(({ text: said }, i) => {
      const place = state.picked.indexOf(i);
      const choose = button(said, () => pick(i), false);
      choose.setAttribute("aria-pressed", String(place >= 0));
      return around("li", make("b", "", place >= 0 ? `${place + 1}.` : ""), choose);
    }));
    const seen = (f) => f.map((v, j) => (j === hidden && !state.sees ? 0 : v));
    const learnt = state.rankings.map((ranked) => ranked.map(seen));
    const w = fit(learnt.flatMap(pairs), features.length);
    const largest = Math.max(1, ...w.map(Math.abs));
    weights.replaceChildren(...w.map((v, j) => row(features[j], v, largest, j === hidden && !state.sees)));

    const scored = fresh.map((own) => ({ r: own.map(([f]) => round6(reward(w, seen(f)))), g: own.map(([, gold]) => gold) }));
    const curve = tried.map((n) => mean(scored.map(({ r, g }) => bestOf(n, r, g))));
    const gains = curve.map((at) => ({ reward: at.reward - curve[0].reward, gold: at.gold - curve[0].gold }));
    plot(svg, tried, gains);
    text.textContent = told(state.rankings.length, learnt, w, scored, gains);
    svg.setAttribute("aria-label", `Gains of the best of n. ${tried.map((n, i) =>
      `n = ${n}: learnt ${signed(gains[i].reward)}, gold ${signed(gains[i].gold)}`).join("; ")}.`);
  }

  function told(count, learnt, w, scored, gains) {
    if (count === 0) return "No ranking yet: all weights are 0, and every answer is as good as any other.";
    const own = share(learnt.map((ranked) => agreement(ranked.map((f) => round6(reward(w, f))), [...ranked.keys()].map((i) => -i))));
    const other = share(scored.map(({ r, g }) => agreement(r, g)));
    const top = gains.reduce((best, { gold }, i) => (gold > gains[best].gold ? i : best), 0);
    const last = gains.length - 1;
    const turn = top === last
      ? `still rising at the best of ${tried[last]}: ${signed(gains[last].gold)}`
      : `highest at the best of ${tried[top]}, ${signed(gains[top].gold)}, and ${signed(gains[last].gold)} at the best of ${tried[last]}`;
    return (
      `${count} ranking${count === 1 ? "" : "s"}, ${learnt.flatMap(pairs).length} pairs. The learnt reward orders ` +
      `${percent(own)} of these pairs as they were ranked, and ${percent(other)} of pairs of new answers as the gold ` +
      `reward does. The gold reward is ${turn}. The learnt reward promises ${signed(gains[last].reward)} there.`
    );
  }

  function row(name, value, largest, unseen) {
    const item = make("div", unseen ? "unseen" : "");
    item.setAttribute("role", "listitem");
    const bar = document.createElement("i");
    const width = (50 * Math.abs(value)) / largest;
    bar.style.width = `${width}%`;
    bar.style.marginInlineStart = `${value < 0 ? 50 - width : 50}%`;
    item.append(make("span", "", name), around("span", bar), make("b", "", unseen ? "unseen" : signed(value)));
    return item;
  }

  function button(name, act, redraw = true) {
    const made = Object.assign(make("button", "", name), { type: "button" });
    made.addEventListener("click", () => {
      act();
      if (redraw) draw();
    });
    return made;
  }

  draw();
}

const BOX = { left: 40, right: 60, top: 12, bottom: 38, width: 480, height: 220 };

function plot(svg, tried, gains) {
  svg.replaceChildren();
  const values = gains.flatMap(({ reward: a, gold: b }) => [a, b]);
  const [low, high] = [Math.min(-0.5, ...values), Math.max(1, ...values)];
  const x = (i) => BOX.left + (i / (tried.length - 1)) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.top + ((high - v) / (high - low)) * (BOX.height - BOX.top - BOX.bottom);
  shape(svg, "path", { d: `M${x(0)},${y(0)}H${x(tried.length - 1)}`, stroke: "currentColor", "stroke-opacity": 0.5 });
  tried.forEach((n, i) => write(svg, String(n), [x(i), BOX.height - BOX.bottom + 18], "middle"));
  write(svg, "best of n", [(x(0) + x(tried.length - 1)) / 2, BOX.height - 4], "middle");
  for (let v = Math.ceil(low); v <= high; v += 1) write(svg, String(v).replace("-", "−"), [BOX.left - 8, y(v) + 4], "end");
  const last = gains.length - 1;
  const close = Math.abs(y(gains[last].reward) - y(gains[last].gold)) < 14;
  for (const [key, dash] of [["reward", "5 4"], ["gold", "none"]]) {
    const points = gains.map((gain, i) => `${x(i).toFixed(1)},${y(gain[key]).toFixed(1)}`).join(" ");
    shape(svg, "polyline", { points, fill: "none", stroke: key === "gold" ? "var(--bar)" : "currentColor", "stroke-width": 2.5, "stroke-dasharray": dash });
    const lower = key === "gold" ? gains[last].gold <= gains[last].reward : gains[last].reward < gains[last].gold;
    const shift = close ? (lower ? 11 : -3) : 4;
    write(svg, key === "gold" ? "gold" : "learnt", [x(last) + 8, y(gains[last][key]) + shift], "start");
  }
}

// Numbers in 0 … 1 that come again with the page: mulberry32.
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
}

// Answers with the same features have the same reward, whatever the order in which its terms were added.
function round6(value) {
  return Math.round(value * 1e6) / 1e6;
}

function mean(found) {
  const over = (key) => found.reduce((sum, one) => sum + one[key], 0) / found.length;
  return { reward: over("reward"), gold: over("gold") };
}

function share(counts) {
  return counts.reduce((sum, { right }) => sum + right, 0) / counts.reduce((sum, { all }) => sum + all, 0);
}
