// A conversation as the text that a model reads: which turns still fit, and how much reading they have cost.
// Data, all optional: {turns, tokens, window}: turns of the conversation, tokens of each, tokens that fit.

import { make, chooser, slider } from "./parts.js";

// The turns, from `first` to `turn`, which the prompt of a turn can hold, the latest ones, and their tokens.
export function prompt(turn, tokens, window) {
  const seen = Math.min(turn, Math.floor(window / tokens));
  return { first: turn - seen + 1, seen, read: seen * tokens };
}

// Tokens read up to a turn: with every prompt read from its beginning, and with keys and values kept (nothing twice).
export function reading(turn, tokens, window) {
  let again = 0;
  for (let k = 1; k <= turn; k++) again += prompt(k, tokens, window).read;
  return { again, kept: turn * tokens };
}

export function mount(figure, { turns = 40, tokens = 150, window = 4096 } = {}) {
  const state = { turn: 1, tokens, window };

  const controls = make("div", "course-controls");
  const latest = slider("Turn", { min: 1, max: turns, value: 1 }, (turn) => {
    state.turn = turn;
    draw();
  });
  const choose = (name, values, key) => {
    const chosen = (place) => {
      state[key] = values[place];
      draw();
    };
    return chooser(name, values.map((v) => v.toLocaleString("en")), chosen, values.indexOf(state[key])).control;
  };
  controls.append(
    latest.control,
    choose("Tokens a turn", [50, 150, 400], "tokens"),
    choose("Context window", [1024, 2048, 4096, 8192], "window"),
  );
  const strip = make("div", "turns");
  strip.setAttribute("role", "img");
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(controls, strip, text);

  function draw() {
    const { turn, tokens: each, window: size } = state;
    const { first, seen, read } = prompt(turn, each, size);
    const { again, kept } = reading(turn, each, size);
    latest.say(`${turn} of ${turns}`);
    strip.replaceChildren(
      ...Array.from({ length: turns }, (_, i) => {
        const k = i + 1;
        return make("i", k > turn ? "to-come" : k < first ? "forgotten" : "seen", k % 5 ? "" : String(k));
      }),
    );
    const forgotten = first === 1 ? "Nothing is forgotten." : first === 2 ? "Turn 1 is forgotten." : `Turns 1 to ${first - 1} are forgotten.`;
    strip.setAttribute("aria-label", `Of ${turns} turns the model sees ${seen}, up to turn ${turn}. ${forgotten}`);
    text.textContent =
      `For turn ${turn} the model reads ${seen === 1 ? "this turn" : `turns ${first} to ${turn}`}, ${number(read)} of ` +
      `${number(size)} tokens. ${forgotten} Read so far: ${number(again)} tokens; with keys and values kept, ${number(kept)}.`;
  }

  draw();
}

function number(n) {
  return n.toLocaleString("en");
}
