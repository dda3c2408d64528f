// A cloze game: one word of a sentence is hidden; the reader guesses it, then two models show what they guessed.
// Data: {models: [name, …], sentences: [{words: [string, …], blanks: [{place, guesses: [{top: [[word, p], …], rank}, …]}, …]}, …]};
// `guesses` follows `models`; `top` holds the likeliest words, likeliest first; `rank` is that of the hidden word, or
// null where the model does not have it among its words.

import { make, chooser, line, slider } from "./parts.js";

// A guess is right whatever its capitals and the space around it.
export function matches(guess, word) {
  return guess.trim().toLowerCase() === word.toLowerCase();
}

// The sentence before and after the hidden word, with spaces where print has them.
export function around(words, place) {
  return { before: spaced(words.slice(0, place)), after: spaced(["", ...words.slice(place + 1)]) };
}

// Adds what one blank showed to the score; a blank that was answered before changes nothing.
export function scored(score, key, right) {
  return key in score ? score : { ...score, [key]: right };
}

function spaced(words) {
  return words.reduce((text, word, i) => text + (i === 0 || /^[.,;:?!]/.test(word) ? "" : " ") + word, "");
}

export function mount(figure, { models, sentences }) {
  const state = { sentence: 0, blank: 0, score: {}, shown: false, guess: "" };
  const blanks = () => sentences[state.sentence].blanks;
  const key = () => `${state.sentence} ${state.blank}`;

  const controls = make("div", "course-controls");
  const sentence = chooser("Sentence", sentences.map((_, i) => `number ${i + 1}`), (place) => turn({ sentence: place, blank: 0 }));
  const blank = slider("Blank", { min: 0, value: 0 }, (n) => turn({ blank: n }));
  controls.append(sentence.control, blank.control);

  const page = make("p", "cloze-text");
  const form = make("form", "cloze-guess");
  const field = Object.assign(document.createElement("input"), { type: "text", autocomplete: "off", spellcheck: false });
  form.append(line("Your guess", field), make("button", "", "Guess"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    answer();
  });
  const answers = make("div", "cloze-answers");
  const text = make("p", "course-state");
  text.setAttribute("aria-live", "polite");
  figure.append(controls, page, form, text, answers);

  function turn(change) {
    Object.assign(state, change, { shown: false, guess: "" });
    field.value = "";
    draw();
  }

  function answer() {
    const { place: at, guesses } = blanks()[state.blank];
    state.guess = field.value;
    state.shown = true;
    const right = [matches(state.guess, sentences[state.sentence].words[at]), ...guesses.map(({ rank }) => rank === 1)];
    state.score = scored(state.score, key(), right);
    draw();
  }

  function draw() {
    const { words } = sentences[state.sentence];
    const { place: at, guesses } = blanks()[state.blank];
    const { before, after } = around(words, at);
    blank.input.max = blanks().length - 1;
    blank.input.value = state.blank;
    blank.say(`${state.blank + 1} of ${blanks().length}`);
    const gap = make("mark", "", state.shown ? words[at] : "\u00a0".repeat(8));
    if (!state.shown) gap.append(make("span", "visually-hidden", "blank"));
    page.replaceChildren(before, before ? " " : "", gap, after);
    // One scale for all models: the longest bar is the largest probability shown.
    const largest = Math.max(...guesses.flatMap(({ top }) => top.map(([, p]) => p)));
    const columns = guesses.map((guess, i) => column(models[i], guess, words[at], largest));
    answers.replaceChildren(...(state.shown ? columns : []));
    text.textContent = state.shown ? told(words[at], guesses) : "Type the word that stood in the gap, and compare.";
  }

  function told(word, guesses) {
    const mine = matches(state.guess, word) ? "your guess is right" : state.guess.trim() ? `not “${state.guess.trim()}”` : "";
    const theirs = guesses.map(({ rank }, i) => `${models[i]}: ${rank ? `number ${rank}` : "not among its words"}`);
    const rounds = Object.values(state.score);
    const count = (i) => rounds.filter((right) => right[i]).length;
    const score = ["you", ...models].map((name, i) => `${name} ${count(i)}`).join(", ");
    return (
      `It was “${word}”${mine ? `, ${mine}` : ""}. Where the word stood in their lists: ${theirs.join("; ")}. ` +
      `Right so far, of ${rounds.length}: ${score}.`
    );
  }

  function column(name, { top }, word, largest) {
    const bars = make("div", "token-bars");
    bars.setAttribute("role", "list");
    bars.setAttribute("aria-label", name);
    bars.append(...top.map(([guess, p]) => row(guess, p, matches(guess, word), largest)));
    const whole = document.createElement("div");
    whole.append(make("p", "course-title", name), bars);
    return whole;
  }

  function row(name, p, chosen, largest) {
    const item = make("div", chosen ? "chosen" : "");
    item.setAttribute("role", "listitem");
    const bar = document.createElement("i");
    bar.style.width = `${(100 * p) / largest}%`;
    const track = document.createElement("span");
    track.append(bar);
    item.append(make("code", "", name), track, make("b", "", p.toFixed(3)));
    return item;
  }

  draw();
}
