// One question put to several models: the answer that each has drawn, word by word, and what became of many answers.
// Data: {models: [name, …], questions: [{text, truth, answers: [{steps: [{word, p, rank, top: [[word, p], …]}, …],
// counts: [right, refusals, wrong]}, …]}, …]}; `answers` follows `models`, `top` holds the likeliest words, likeliest first.

import { make, around, chooser, slider } from "./parts.js";

const VERDICTS = ["right", "does not know", "wrong"];

// The answer before word n, and the word drawn there.
export function said(steps, n) {
  const before = steps.slice(0, n).map(({ word }) => word).join(" ");
  return { before: before && `${before} `, next: steps[n].word };
}

// Counts in words: what there is none of is left out.
export function told(counts) {
  const all = counts.reduce((a, b) => a + b, 0);
  const parts = counts.map((count, i) => (count ? `${VERDICTS[i]} ${count}` : "")).filter(Boolean);
  return `of ${all} answers: ${parts.join(", ")}`;
}

// A probability as it is shown; a small one is not nothing.
export function chance(p) {
  return p < 0.0005 ? "< 0.001" : p.toFixed(3);
}

export function mount(figure, { models, questions }) {
  const state = { question: 0, model: 0, word: 0 };
  const answer = () => questions[state.question].answers[state.model];

  const controls = make("div", "course-controls");
  const word = slider("Word", { min: 0, value: 0 }, (n) => {
    state.word = n;
    draw();
  });
  const choose = (name, names, key) =>
    chooser(name, names, (place) => {
      Object.assign(state, { [key]: place, word: 0 });
      draw();
    }).control;
  controls.append(
    choose("Question", questions.map(({ text }) => text), "question"),
    choose("Model", models, "model"),
    word.control,
  );

  const page = make("p", "asking-text");
  const bars = make("div", "token-bars");
  bars.setAttribute("role", "list");
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  const table = make("table", "asking-counts");
  figure.append(controls, page, bars, text, table);

  function draw() {
    const { text: asked, truth } = questions[state.question];
    const { steps, counts } = answer();
    const step = steps[state.word];
    const { before, next } = said(steps, state.word);
    word.input.max = steps.length - 1;
    word.input.value = state.word;
    word.say(`${state.word + 1} of ${steps.length}`);
    page.replaceChildren(make("span", "given", `${asked} `), before, make("mark", "", next));
    bars.replaceChildren(...step.top.map(([word, p]) => row(word, p, word === next)));
    if (step.rank > step.top.length) bars.append(row(next, step.p, true));
    const which = step.rank === 1 ? "the likeliest word" : `number ${step.rank} of its words`;
    text.textContent =
      `${truth} Word ${state.word + 1} of ${models[state.model]}: “${next}”, ${which}, with probability ` +
      `${chance(step.p)}. This model, ${told(counts)}.`;
    table.replaceChildren(head(), ...models.map(counted));
  }

  function head() {
    const names = ["of 100 answers", ...VERDICTS].map((name) => {
      const cell = make("th", "", name);
      cell.scope = "col";
      return cell;
    });
    return around("thead", around("tr", ...names));
  }

  function counted(name, i) {
    const cells = questions[state.question].answers[i].counts.map((count) => make("td", "", String(count)));
    const first = make("th", "", name);
    first.scope = "row";
    const whole = around("tr", first, ...cells);
    whole.className = i === state.model ? "chosen" : "";
    return whole;
  }

  function row(name, p, chosen) {
    const item = make("div", chosen ? "chosen" : "");
    item.setAttribute("role", "listitem");
    const bar = document.createElement("i");
    bar.style.width = `${100 * p}%`;
    item.append(make("code", "", name), around("span", bar), make("b", "", chance(p)));
    return item;
  }

  draw();
}
