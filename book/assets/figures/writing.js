// A language model writes: token by token, with the distribution that each token was drawn from.
// Data: {prompt: string, ways: [{name, steps: [{token, p, rank, entropy, top: [[token, p], …]}, …]}, …]};
// `top` holds the likeliest tokens, likeliest first; `entropy` is in bits.

import { make, chooser, slider, visible } from "./parts.js";

// The text before step n, and the token chosen there.
export function written(prompt, steps, n) {
  return { before: prompt + steps.slice(0, n).map((step) => step.token).join(""), next: steps[n].token };
}

// Tokens that have gone through the model once step n is done: with keys and values kept, the prompt and then
// one at a time; without, the whole text again for each step. Characters are counted as tokens.
export function work(promptLength, n) {
  const steps = n + 1;
  return { cached: promptLength + n, uncached: steps * promptLength + (steps * n) / 2 };
}

// What the listed tokens leave to all others.
export function rest(top) {
  return Math.max(0, 1 - top.reduce((sum, [, p]) => sum + p, 0));
}

export function mount(figure, { prompt, ways }) {
  const state = { way: 0, step: 0 };
  const steps = () => ways[state.way].steps;

  const controls = make("div", "course-controls");
  const rule = chooser("Rule", ways.map(({ name }) => name), (place) => {
    state.way = place;
    draw();
  });
  const place = slider("Step", { min: 0, max: ways[0].steps.length - 1, value: 0 }, (step) => {
    state.step = step;
    draw();
  });
  controls.append(rule.control, place.control);

  const page = make("p", "writing-text");
  const bars = make("div", "token-bars");
  bars.setAttribute("role", "list");
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(controls, page, bars, text);

  function draw() {
    const step = steps()[state.step];
    const { before, next } = written(prompt, steps(), state.step);
    place.say(`${state.step + 1} of ${steps().length}`);
    page.replaceChildren(
      make("span", "given", prompt), before.slice(prompt.length), make("mark", "", visible(next)),
    );
    bars.replaceChildren(...step.top.map(([token, p]) => row(visible(token), p, token === next)));
    if (step.rank > step.top.length) bars.append(row(visible(next), step.p, true));
    else bars.append(row("others", rest(step.top), false));
    const { cached, uncached } = work([...prompt].length, state.step);
    const which = step.rank === 1 ? "the likeliest" : `number ${step.rank}`;
    text.textContent =
      `Step ${state.step + 1}, ${ways[state.way].name}: the model chooses “${visible(next)}”, ${which}, ` +
      `with probability ${step.p.toFixed(3)}. Entropy ${step.entropy.toFixed(2)} bits. ` +
      `Tokens through the model so far: ${cached} with a cache, ${uncached} without.`;
  }

  function row(name, p, chosen) {
    const item = make("div", chosen ? "chosen" : "");
    item.setAttribute("role", "listitem");
    const bar = document.createElement("i");
    bar.style.width = `${100 * p}%`;
    const track = document.createElement("span");
    track.append(bar);
    item.append(make("code", "", name), track, make("b", "", p.toFixed(3)));
    return item;
  }

  draw();
}
