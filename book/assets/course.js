// What the book's own elements need on every page: steppers, formula figures, repairs of the theme.

// --- steppers ------------------------------------------------------------------------------------

// Without this script a stepper is a strip of some frames; with it, one frame and native controls.
function mountStepper(stepper) {
  const axes = JSON.parse(stepper.dataset.axes);
  const frames = new Map([...stepper.querySelectorAll("figure")].map((f) => [f.dataset.at, f]));
  const at = axes.map(() => 0);
  const show = () => {
    for (const frame of frames.values()) frame.hidden = true;
    const frame = frames.get(at.join(","));
    frame.hidden = false;
    return frame;
  };
  const status = element("p", { className: "visually-hidden", role: "status" });
  const controls = element("div", { className: "course-controls" });
  axes.forEach((axis, i) => {
    controls.append(control(axis, (value) => {
      at[i] = value;
      const picture = show().querySelector("svg, img");
      status.textContent = picture.getAttribute("aria-label") ?? picture.alt;
    }));
  });
  stepper.prepend(controls);
  stepper.append(status);
  show();
}

function control(axis, changed) {
  const label = element("label", {}, element("span", { textContent: axis.label }));
  if (axis.control === "dropdown") {
    const select = element("select", {}, ...axis.titles.map((t) => element("option", { textContent: t })));
    select.addEventListener("change", () => changed(select.selectedIndex));
    label.append(select);
    return label;
  }
  const slider = element("input", { type: "range", min: 0, max: axis.titles.length - 1, step: 1, value: 0 });
  // aria-valuetext says the same to a screen reader.
  const output = element("span", { className: "course-value", ariaHidden: "true" });
  const update = () => {
    output.textContent = axis.titles[slider.value];
    slider.setAttribute("aria-valuetext", axis.titles[slider.value]);
  };
  slider.addEventListener("input", () => { update(); changed(Number(slider.value)); });
  update();
  label.append(slider, output);
  if (axis.control !== "play") return label;

  const button = element("button", { type: "button", textContent: "Play" });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = -1;
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.stepUp();
      slider.dispatchEvent(new Event("input"));
      if (slider.value === slider.max) stop();
    }, 700);
  });
  // A label may hold one control only: the button stands beside it.
  return element("div", { className: "course-play" }, label, button);
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  if (properties.role) node.setAttribute("role", properties.role);
  node.append(...children);
  return node;
}

// --- formula figures -----------------------------------------------------------------------------

function mountFigure(figure) {
  const module = window.courseFigures?.[figure.dataset.figure];
  if (!module) return; // the text alternative stays
  const data = JSON.parse(figure.querySelector("script").textContent);
  figure.prepend(element("p", { className: "course-title", textContent: figure.getAttribute("aria-label") }));
  module.mount(figure, data);
  figure.classList.add("mounted");
}

// --- repairs -------------------------------------------------------------------------------------

// What scrolls sideways must be reachable by keyboard: wide formulas, tables and outputs on a phone.
function makeScrollable() {
  for (const box of document.querySelectorAll("mjx-container[display], .text_html, .output pre, .pst-scrollable-table-container")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// Widgets come after the page: their Play buttons and slider handles have no names.
function nameWidgets() {
  const icons = { "fa-play": "Play", "fa-pause": "Pause", "fa-stop": "Stop", "fa-retweet": "Repeat" };
  for (const [icon, name] of Object.entries(icons)) {
    for (const i of document.querySelectorAll(`button > i.${icon}`)) i.parentElement.setAttribute("aria-label", name);
  }
  for (const handle of document.querySelectorAll(".noUi-handle[role=slider]")) {
    const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label")?.textContent;
    handle.setAttribute("aria-label", label || "Value");
  }
}

if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) {
  new MutationObserver(nameWidgets).observe(document.body, { childList: true, subtree: true });
}
const whenTypeset = window.MathJax?.startup?.promise ?? Promise.resolve();
whenTypeset.then(makeScrollable);
addEventListener("resize", makeScrollable);

document.querySelectorAll(".course-stepper").forEach(mountStepper);
document.querySelectorAll(".course-figure").forEach(mountFigure);
