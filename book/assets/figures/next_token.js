// The next token's distribution under temperature, top-k and top-p.
// Data: {tokens: [string, …], logits: [number, …]}, as a language model gives them.

import { slider, visible } from "./parts.js";

// Natural logarithms throughout; -Infinity removes a token.
export function softmax(logits, temperature = 1) {
  const scaled = logits.map((z) => z / temperature);
  const largest = Math.max(...scaled);
  const weights = scaled.map((z) => Math.exp(z - largest));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

// Which tokens may be drawn, and with what probability. First temperature, then the k largest
// (Fan 2018), then the smallest set that holds p (Holtzman 2020), which keeps the token that crosses p.
// Equal probabilities keep the order of the vocabulary.
export function distribution(logits, { temperature, k, p }) {
  const full = softmax(logits, temperature);
  const order = full.map((_, i) => i).sort((a, b) => full[b] - full[a] || a - b).slice(0, k);
  const mass = order.reduce((sum, i) => sum + full[i], 0);
  const kept = [];
  let cumulative = 0;
  for (const i of order) {
    kept.push(i);
    cumulative += full[i] / mass;
    if (cumulative >= p - 1e-12) break;
  }
  const total = kept.reduce((sum, i) => sum + full[i], 0);
  const probabilities = full.map(() => 0);
  for (const i of kept) probabilities[i] = full[i] / total;
  return { full, probabilities, kept, entropy: entropy(probabilities) };
}

// In bits.
export function entropy(probabilities) {
  return -probabilities.reduce((sum, q) => sum + (q > 0 ? q * Math.log2(q) : 0), 0);
}

export function mount(figure, { tokens, logits }) {
  const count = tokens.length;
  if (logits.length !== count) throw new Error(`${count} tokens but ${logits.length} logits`);
  const state = { temperature: 1, k: count, p: 1 };

  const controls = document.createElement("div");
  controls.className = "course-controls";
  controls.append(
    chosen("Temperature T", { min: 0.1, max: 3, step: 0.1, value: 1 }, (v) => v.toFixed(1), (v) => (state.temperature = v)),
    chosen("Top-k", { min: 1, max: count, value: count }, (v) => (v === count ? "all" : String(v)), (v) => (state.k = v)),
    chosen("Top-p", { min: 0.05, max: 1, step: 0.05, value: 1 }, (v) => v.toFixed(2), (v) => (state.p = v)),
  );

  const order = tokens.map((_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b);
  const bars = document.createElement("div");
  bars.className = "token-bars";
  bars.setAttribute("role", "list");
  const rows = order.map((i) => {
    const row = document.createElement("div");
    row.setAttribute("role", "listitem");
    const name = document.createElement("code");
    name.textContent = visible(tokens[i]);
    const track = document.createElement("span");
    const bar = track.appendChild(document.createElement("i"));
    const number = document.createElement("b");
    row.append(name, track, number);
    bars.append(row);
    return { i, row, bar, number };
  });

  const text = document.createElement("p");
  text.className = "course-state";
  text.setAttribute("aria-live", "polite");
  figure.append(controls, bars, text);

  function chosen(name, range, format, set) {
    const { control, say } = slider(name, range, (value) => {
      set(value);
      say(format(value));
      draw();
    });
    say(format(range.value));
    return control;
  }

  function draw() {
    const { full, probabilities, kept, entropy: bits } = distribution(logits, state);
    const widest = Math.max(...probabilities);
    for (const { i, row, bar, number } of rows) {
      const survives = probabilities[i] > 0;
      row.classList.toggle("out", !survives);
      bar.style.width = `${(100 * (survives ? probabilities[i] : full[i])) / widest}%`;
      number.textContent = survives ? probabilities[i].toFixed(4) : "out";
    }
    const best = kept[0];
    text.textContent =
      `${kept.length} of ${count} tokens can be drawn. The likeliest is “${visible(tokens[best])}” ` +
      `with probability ${probabilities[best].toFixed(4)}. Entropy ${bits.toFixed(2)} bits.`;
  }
  draw();
}
