// <optimizer-trajectory>: the book's running quadratic, f(θ) = ½ (θ₁² + 20 θ₂²) from (−4, 1.5), and the paths of
// several optimizers on it, with sliders. No library, no module: it works from file:// too.
//
//   <optimizer-trajectory optimizers="sgd,momentum,adam" controls="lr,beta1,beta2,scale,correction" steps="100">
//
// Attributes lr, beta1, beta2, scale, correction ("on" or "off") give the starting values. `element.paths` holds the
// points, {adam: [[θ₁, θ₂], …], …}, and `element.set({lr: 0.01})` moves a slider; the tests compare the points with
// the optimizers of the package.
(() => {
  "use strict";

  const CURVATURES = [1, 20];
  const START = [-4, 1.5];
  const EPS = 1e-8;

  // Each rule takes (gradient, state, hyper-parameters) of one coordinate and returns the length of its step. The
  // state starts empty; the arithmetic is in the order of PyTorch's.
  const RULES = {
    sgd: (g, s, h) => h.lr * g,
    momentum: (g, s, h) => h.lr * (s.b = s.b === undefined ? g : h.beta1 * s.b + g),
    nesterov: (g, s, h) => {
      s.b = s.b === undefined ? g : h.beta1 * s.b + g;
      return h.lr * (g + h.beta1 * s.b);
    },
    adagrad: (g, s, h) => {
      s.v = (s.v || 0) + g * g;
      return (h.lr * g) / (Math.sqrt(s.v) + 1e-10);
    },
    rmsprop: (g, s, h) => {
      s.v = h.beta2 * (s.v || 0) + (1 - h.beta2) * g * g;
      return (h.lr * g) / (Math.sqrt(s.v) + EPS);
    },
    adam: (g, s, h) => {
      s.t = (s.t || 0) + 1;
      s.m = h.beta1 * (s.m || 0) + (1 - h.beta1) * g;
      s.v = h.beta2 * (s.v || 0) + (1 - h.beta2) * g * g;
      const m = h.correction ? s.m / (1 - h.beta1 ** s.t) : s.m;
      const v = h.correction ? s.v / (1 - h.beta2 ** s.t) : s.v;
      return (h.lr * m) / (Math.sqrt(v) + EPS);
    },
  };

  // Names and colors are those of experiments/figures.py (a test compares them).
  const LOOKS = {
    sgd: ["SGD", "#5f6670", "#aeb6c1"],
    momentum: ["Momentum", "#9a5b00", "#f0a83c"],
    nesterov: ["Nesterov", "#bb4400", "#ff8d52"],
    adagrad: ["Adagrad", "#00775a", "#2fc89c"],
    rmsprop: ["RMSprop", "#a33f7c", "#eb9fcb"],
    adam: ["Adam", "#0068a9", "#56b4f5"],
  };

  // A slider's position x, and the value that it stands for.
  const CONTROLS = {
    lr: { label: "Learning rate α", initial: 0.08, min: -3, max: 0, step: 0.01, value: (x) => 10 ** x, place: Math.log10 },
    scale: { label: "Multiply the loss by", initial: 1, min: -3, max: 3, step: 0.1, value: (x) => 10 ** x, place: Math.log10 },
    beta1: { label: "β₁ (and momentum)", initial: 0.9, min: 0, max: 0.99, step: 0.01, value: (x) => x, place: (v) => v },
    beta2: {
      label: "β₂", initial: 0.999, min: 0.3, max: 5, step: 0.05,
      value: (x) => 1 - 10 ** -x, place: (v) => -Math.log10(1 - v),
    },
  };

  const WIDTH = 320, HEIGHT = 170; // of a panel, in its own units
  const REACH = [4.6, 2.44]; // what it shows: |θ₁| and |θ₂| up to
  const toPixels = ([a, b]) => [(1 + a / REACH[0]) * (WIDTH / 2), (1 - b / REACH[1]) * (HEIGHT / 2)];
  const show = (x) => (x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4) ? String(+x.toPrecision(3)) : x.toExponential(1).replace("e+", "e"));
  // 1.2e-7 as people write it: 1.2 × 10⁻⁷.
  const readable = (x) => show(x).replace(/e(-?\d+)/, (_, n) => " × 10" + [...n].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(d)] || "⁻").join("")).replace("-", "−");

  function follow(rule, hyper, steps) {
    const states = [{}, {}];
    const points = [[...START]];
    for (let t = 0; t < steps; t++) {
      const here = points[t];
      const next = here.map((x, i) => x - rule(hyper.scale * CURVATURES[i] * x, states[i], hyper));
      if (!next.every(Number.isFinite)) break;
      points.push(next);
    }
    return points;
  }

  const STYLE = `
    optimizer-trajectory .ot-panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)); gap: .75rem; }
    optimizer-trajectory .ot-panel { margin: 0; min-width: 0; }
    optimizer-trajectory .ot-panel svg { display: block; width: 100%; height: auto; border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: .4rem; }
    optimizer-trajectory .ot-panel .ot-caption { display: grid; font-size: .9rem; line-height: 1.45; margin: 0 0 .3rem; }
    optimizer-trajectory .ot-name { font-weight: 700; }
    optimizer-trajectory .ot-end { font-variant-numeric: tabular-nums; }
    optimizer-trajectory .ot-controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .4rem 1.5rem; margin-top: .9rem; font-size: .9rem; align-items: center; }
    optimizer-trajectory .ot-row { display: grid; grid-template-columns: 1fr auto; }
    optimizer-trajectory .ot-row input { grid-column: 1 / -1; width: 100%; min-height: 1.6rem; accent-color: var(--pst-color-primary, #0068a9); }
    optimizer-trajectory .ot-row output { font-variant-numeric: tabular-nums; font-weight: 600; }
    optimizer-trajectory .ot-switch input { accent-color: var(--pst-color-primary, #0068a9); width: 1.1rem; height: 1.1rem; vertical-align: -.2em; margin-right: .4em; }
    optimizer-trajectory button { font: inherit; color: inherit; background: none; border: 1px solid currentColor; border-radius: .4rem; padding: .2rem .8rem; justify-self: start; align-self: center; }
    optimizer-trajectory .ot-summary { font-size: .85rem; margin: .6rem 0 0; }
    optimizer-trajectory :focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }`;

  let count = 0;

  class Trajectory extends HTMLElement {
    connectedCallback() {
      if (this.paths) return; // moved in the page
      this.number = ++count;
      this.names = (this.getAttribute("optimizers") || "sgd,momentum,adam").split(",").map((n) => n.trim()).filter((n) => n in RULES);
      this.steps = Number(this.getAttribute("steps")) || 100;
      const wanted = (this.getAttribute("controls") || "lr,scale,beta1,beta2,correction").split(",").map((n) => n.trim());
      this.initial = { correction: this.getAttribute("correction") !== "off" };
      for (const name in CONTROLS) this.initial[name] = Number(this.getAttribute(name) ?? CONTROLS[name].initial);
      this.hyper = { ...this.initial };
      const id = (name) => `trajectory-${this.number}-${name}`;
      const rings = [0.1, 0.4, 1.6, 6.4, 25.6].map((level) => {
        const [x, y] = [Math.sqrt(2 * level), Math.sqrt((2 * level) / 20)];
        return `<ellipse cx="${WIDTH / 2}" cy="${HEIGHT / 2}" rx="${((x / REACH[0]) * WIDTH) / 2}" ry="${((y / REACH[1]) * HEIGHT) / 2}"/>`;
      });
      const [x0, y0] = toPixels(START);
      this.innerHTML = `<style>${STYLE}</style><div class="ot-panels">` +
        this.names.map((name) => {
          const [title, light, dark] = LOOKS[name];
          return `<div class="ot-panel" data-optimizer="${name}">
            <p class="ot-caption"><span class="ot-name" style="color:light-dark(${light},${dark})">${title}</span> <span class="ot-end"></span></p>
            <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-labelledby="${id(name)}"><title id="${id(name)}"></title>
              <g fill="none" stroke="currentColor" stroke-opacity=".28">${rings.join("")}</g>
              <path d="M${WIDTH / 2 - 4} ${HEIGHT / 2}h8m-4-4v8" stroke="currentColor"/>
              <g style="color:light-dark(${light},${dark})"><polyline fill="none" stroke="currentColor" stroke-width="1.6" stroke-linejoin="round"/><path class="ot-dots" fill="none" stroke="currentColor" stroke-width="4" stroke-linecap="round"/></g>
              <circle cx="${x0}" cy="${y0}" r="4" fill="none" stroke="currentColor" stroke-width="1.5"/></svg></div>`;
        }).join("") + `</div><div class="ot-controls">` +
        Object.keys(CONTROLS).filter((name) => wanted.includes(name)).map((name) => {
          const c = CONTROLS[name];
          return `<div class="ot-row"><label for="${id(name)}">${c.label}</label><output for="${id(name)}"></output>
            <input type="range" id="${id(name)}" name="${name}" min="${c.min}" max="${c.max}" step="${c.step}"></div>`;
        }).join("") +
        (wanted.includes("correction") ? `<label class="ot-switch"><input type="checkbox" name="correction"> Bias correction in Adam</label>` : "") +
        `<button type="button">Start values</button></div><p class="ot-summary" role="status"></p>`;
      this.addEventListener("input", ({ target }) => {
        this.hyper[target.name] = target.type === "checkbox" ? target.checked : CONTROLS[target.name].value(Number(target.value));
        this.draw();
      });
      // Not while a slider moves: a screen reader would never come to an end.
      this.addEventListener("change", () => this.summarize());
      this.querySelector("button").addEventListener("click", () => this.set(this.initial));
      this.set({});
    }

    set(values) {
      Object.assign(this.hyper, values);
      this.draw();
      this.summarize();
    }

    draw() {
      for (const input of this.querySelectorAll("input")) {
        const value = this.hyper[input.name];
        if (input.type === "checkbox") {
          input.checked = value;
          continue;
        }
        const text = input.name === "beta2" ? String(+value.toPrecision(6)) : readable(value);
        const place = CONTROLS[input.name].place(value);
        if (Math.abs(Number(input.value) - place) > CONTROLS[input.name].step) input.value = place;
        input.setAttribute("aria-valuetext", text);
        this.querySelector(`output[for="${input.id}"]`).value = text;
      }
      this.paths = {};
      for (const name of this.names) {
        const points = (this.paths[name] = follow(RULES[name], this.hyper, this.steps));
        const panel = this.querySelector(`[data-optimizer="${name}"]`);
        const visible = points.filter((p) => Math.abs(p[0]) < 100 && Math.abs(p[1]) < 100).map((p) => toPixels(p).map((x) => x.toFixed(2)));
        panel.querySelector("polyline").setAttribute("points", visible.map((p) => p.join(",")).join(" "));
        panel.querySelector(".ot-dots").setAttribute("d", visible.map((p) => `M${p[0]} ${p[1]}h0`).join(""));
        const end = this.describe(name);
        panel.querySelector(".ot-end").textContent = end;
        panel.querySelector("title").textContent = `Path of ${LOOKS[name][0]} on an elongated bowl: ${end}`;
      }
    }

    describe(name) {
      const points = this.paths[name];
      const distance = Math.hypot(...points[points.length - 1]);
      if (points.length <= this.steps || distance > 1e3) return "diverges";
      return `ends ${readable(distance)} away`;
    }

    summarize() {
      const ends = this.names.map((name) => `${LOOKS[name][0]} ${this.describe(name)}`).join(", ");
      this.querySelector(".ot-summary").textContent =
        `After ${this.steps} steps from (−4, 1.5), as distance from the minimum: ${ends}.`;
    }
  }

  customElements.define("optimizer-trajectory", Trajectory);
})();
