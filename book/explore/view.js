// What explorables are made of: elements, controls, pictures, heat maps and curves. Drawing on patches is draw.js's.

const CIVIDIS = [
  [0, 34, 78],
  [26, 56, 111],
  [67, 78, 108],
  [97, 101, 111],
  [125, 124, 120],
  [155, 148, 118],
  [188, 174, 108],
  [222, 201, 88],
  [254, 232, 56],
]; // nine of its colours; lightness rises evenly, for every kind of colour vision
const UNSEEN = "#808080";
export const COLOURS = ["#d55e00", "#cc79a7", "#e69f00", "#009e73", "#56b4e9"];
const LABELS = 12; // patches a side up to which a map shows its numbers

/** An element with properties and children (elements or text). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function button(text, answer, properties = {}) {
  return make("button", { type: "button", onclick: answer, ...properties }, text);
}

/** A slider with its words and its number: { element, input }; `answer` hears of each change. */
export function slider(text, { min, max, step = 1, value, show = (number) => `${number}` }, answer) {
  const number = make("output", {}, show(value));
  const input = make("input", { type: "range", min, max, step, value });
  input.setAttribute("aria-valuetext", show(value));
  input.addEventListener("input", () => {
    number.textContent = show(+input.value);
    input.setAttribute("aria-valuetext", number.textContent);
    answer(+input.value);
  });
  return { input, element: make("label", { className: "control" }, text, input, number) };
}

/** A list to choose from: options as [value, words]. */
export function choice(text, options, value, answer) {
  const input = make("select", {}, ...options.map(([name, words]) => make("option", { value: name }, words)));
  input.value = value;
  input.addEventListener("change", () => answer(input.value));
  return { input, element: make("label", { className: "control" }, text, input) };
}

/** A canvas with a caption. `draw(paint, alt)` keeps `paint(context, width, height)` and repeats it on every new size. */
export function panel(caption, { aspect = 1, wide = false } = {}) {
  const canvas = make("canvas", { role: "img" });
  canvas.style.aspectRatio = `${aspect}`;
  const words = make("figcaption", {}, caption);
  const element = make("figure", { className: wide ? "wide" : "" }, canvas, words);
  let last = null;
  const again = () => {
    const width = Math.max(Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)), 1);
    canvas.width = width;
    canvas.height = Math.round(width / aspect);
    if (last) last(canvas.getContext("2d"), canvas.width, canvas.height);
  };
  new ResizeObserver(again).observe(canvas);
  new MutationObserver(again).observe(document.body, { attributeFilter: ["data-theme"] }); // the ink follows the theme
  return {
    element,
    canvas,
    draw(paint, alt) {
      last = paint;
      canvas.setAttribute("aria-label", alt);
      again();
    },
    say: (text) => (words.textContent = text),
  };
}

/** Bytes (3, H, W) as an element that can be drawn or asked for its URL. */
export function bitmap({ data, shape: [, H, W] }) {
  const canvas = make("canvas", { width: W, height: H });
  const image = new ImageData(W, H);
  for (let pixel = 0; pixel < H * W; pixel++) {
    for (let c = 0; c < 3; c++) image.data[4 * pixel + c] = data[c * H * W + pixel];
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draws a picture (bytes) as large as there is room, its pixels as squares. */
export function pixels(picture) {
  const small = bitmap(picture);
  return (g, width, height) => {
    g.imageSmoothingEnabled = false;
    g.drawImage(small, 0, 0, width, height);
  };
}

/** A colour of the map between 0 and 1. */
export function cividis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return `rgb(${CIVIDIS[low].map((from, c) => Math.round(from + (at - low) * (CIVIDIS[low + 1][c] - from))).join(",")})`;
}

/** Draws numbers, one a patch (NaN for none), on the grid [h, w] in colours from `low` to `high`, the numbers in them. */
export function heat(values, [h, w], low, high, show) {
  return (g, width, height) => {
    const [x, y] = [width / w, height / h];
    g.clearRect(0, 0, width, height);
    g.textAlign = "center";
    g.textBaseline = "middle";
    g.font = `${Math.round(Math.min(x, y) * 0.36)}px sans-serif`;
    values.forEach((value, n) => {
      const [left, top] = [(n % w) * x, Math.floor(n / w) * y];
      const share = (value - low) / (high - low || 1);
      g.fillStyle = Number.isNaN(value) ? UNSEEN : cividis(share);
      g.fillRect(Math.floor(left), Math.floor(top), Math.ceil(x), Math.ceil(y));
      if (Number.isNaN(value) || Math.max(h, w) > LABELS) return;
      g.fillStyle = share < 0.5 ? "#fff" : "#000";
      g.fillText(show(value), left + x / 2, top + y / 2);
    });
  };
}

/** Round steps for an axis from `low` to `high`, about four of them. */
export function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 100; at += step) found.push(+at.toPrecision(10));
  return found;
}

/** Curves: lines of { values: [[x, y], ...], colour, dash, name }, on x and y from `low` to `high`, in the page's ink. */
export function curves(
  lines,
  { x: [left, right], y: [low, high], marks = ticks(low, high), show = (n) => `${n}`, across = (y) => y },
) {
  return (g, width, height) => {
    const ratio = window.devicePixelRatio || 1;
    const ink = getComputedStyle(g.canvas).color;
    const [x0, x1, y0, y1] = [46 * ratio, width - 8 * ratio, height - 20 * ratio, 8 * ratio];
    const place = (x, y) => [
      x0 + ((x - left) / (right - left || 1)) * (x1 - x0),
      y0 + ((across(y) - across(low)) / (across(high) - across(low) || 1)) * (y1 - y0),
    ];
    g.clearRect(0, 0, width, height);
    g.font = `${11 * ratio}px sans-serif`;
    g.fillStyle = g.strokeStyle = ink;
    g.lineWidth = ratio;
    g.globalAlpha = 0.25;
    g.beginPath();
    for (const mark of marks) (g.moveTo(x0, place(left, mark)[1]), g.lineTo(x1, place(left, mark)[1]));
    g.stroke();
    g.globalAlpha = 1;
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (const mark of marks) g.fillText(show(mark), x0 - 4 * ratio, place(left, mark)[1]);
    g.textAlign = "center";
    g.textBaseline = "top";
    for (const mark of ticks(left, right)) g.fillText(mark.toLocaleString("en"), place(mark, low)[0], y0 + 5 * ratio);
    for (const { values, colour, dash = [] } of lines) {
      g.strokeStyle = colour;
      g.lineWidth = 2 * ratio;
      g.setLineDash(dash.map((n) => n * ratio));
      g.beginPath();
      let pen = false;
      for (const [x, y] of values) {
        if (!Number.isFinite(across(y))) continue;
        g[pen ? "lineTo" : "moveTo"](...place(x, Math.min(Math.max(y, low), high)));
        pen = true;
      }
      g.stroke();
    }
    g.setLineDash([]);
  };
}

/** Names of curves with a piece of each, for below a panel. */
export function legend(lines) {
  const piece = ({ colour, dash }) => {
    const line = make("span", { ariaHidden: "true" });
    line.style.cssText = `display:inline-block;width:1.8em;margin-right:.4em;vertical-align:middle;border-top:3px ${dash ? "dashed" : "solid"} ${colour}`;
    return line;
  };
  return make("p", { className: "words" }, ...lines.flatMap((line) => [piece(line), `${line.name}   `]));
}

/** Rows of text as a table; the first row is its head. */
export function table([head, ...rows]) {
  const line = (cells, tag) =>
    make("tr", {}, ...cells.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, cell)));
  return make(
    "table",
    {},
    make("thead", {}, line(head, "th")),
    make("tbody", {}, ...rows.map((row) => line(row, "td"))),
  );
}

/** Runs `work` in the next frame; of many wishes before it only the last. */
export function soon(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
