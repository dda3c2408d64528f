// What several figures are made of. `import { … } from "./parts.js";` in a figure brings all of it along.

export function make(tag, className, textContent = "") {
  return Object.assign(document.createElement(tag), { className, textContent });
}

export function around(tag, ...parts) {
  const whole = document.createElement(tag);
  whole.append(...parts);
  return whole;
}

// A control with its name, as one label.
export function line(name, ...parts) {
  return around("label", make("span", "", name), ...parts);
}

// A slider as such a control. `moved` gets each new number; `say` puts it into words, to be seen and to be heard.
export function slider(name, range, moved) {
  const input = Object.assign(document.createElement("input"), { type: "range", step: 1, ...range });
  const value = Object.assign(make("span", "course-value"), { ariaHidden: "true" });
  input.addEventListener("input", () => moved(Number(input.value)));
  const say = (text) => {
    value.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  return { control: line(name, input, value), input, say };
}

// A list to choose from, as such a control. `chosen` gets the place of each new choice.
export function chooser(name, names, chosen, place = 0) {
  const select = document.createElement("select");
  select.append(...names.map((text, i) => new Option(text, i)));
  select.selectedIndex = place;
  select.addEventListener("change", () => chosen(select.selectedIndex));
  return { control: line(name, select), select };
}

// An element of a picture.
export function shape(parent, tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
}

// Words in a picture.
export function write(svg, textContent, [x, y], anchor = "middle") {
  shape(svg, "text", { x, y, "text-anchor": anchor, "font-size": 12, fill: "currentColor" }).textContent = textContent;
}

// The cell that names a table's row or column: `scope` is "row" or "col".
export function head(textContent, scope) {
  return Object.assign(make("th", "", textContent), { scope });
}

// A token's spaces and line ends, to be seen.
export function visible(token) {
  return token.replace(/ /g, "␣").replace(/\n/g, "⏎");
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function signed(value) {
  const text = Math.abs(value).toFixed(2);
  return text === "0.00" ? text : `${value < 0 ? "−" : "+"}${text}`;
}
