// Geometry and drawing of the patch canvas. canvas.py joins this file and canvas.js into one module.
// Places are (row, column), blocks [top, left, rows, columns], both in patches, from 0.

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const names = ([top, left, rows, columns]) => `${rows} x ${columns} patches at row ${top}, column ${left}`;

/** The block [top, left, rows, columns] that has these two patches as corners. */
function between([r1, c1], [r2, c2]) {
  return [Math.min(r1, r2), Math.min(c1, c2), Math.abs(r1 - r2) + 1, Math.abs(c1 - c2) + 1];
}

function inside([top, left, rows, columns], [row, column]) {
  return row >= top && row < top + rows && column >= left && column < left + columns;
}

/** Everything on the canvas, from the traits and from what is being done (`doing`). */
function paint(canvas, picture, model, doing) {
  const [h, w] = model.get("grid");
  canvas.style.aspectRatio = `${w} / ${h}`;
  const width = Math.max(Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)), 1);
  const side = width / w; // device pixels of a patch
  canvas.width = width;
  canvas.height = Math.round(side * h);
  const g = canvas.getContext("2d");
  g.imageSmoothingEnabled = false;
  if (picture.complete && picture.naturalWidth) g.drawImage(picture, 0, 0, canvas.width, canvas.height);
  model.get("veil").forEach((colour, n) => {
    if (!colour) return;
    g.fillStyle = colour;
    g.fillRect((n % w) * side, Math.floor(n / w) * side, side, side);
  });
  g.lineWidth = 1;
  for (const shade of ["rgba(0,0,0,.35)", "rgba(255,255,255,.35)"]) {
    g.strokeStyle = shade;
    g.setLineDash(shade.includes("255") ? [3, 3] : []);
    g.beginPath();
    for (let j = 1; j < w; j++) g.moveTo(j * side, 0), g.lineTo(j * side, canvas.height);
    for (let i = 1; i < h; i++) g.moveTo(0, i * side), g.lineTo(canvas.width, i * side);
    g.stroke();
  }
  g.setLineDash([]);
  const mode = model.get("mode");
  const colours = model.get("colours");
  const blocks = mode === "pick" ? [] : model.get("blocks");
  blocks.forEach((block, m) => hide(g, block, side, colours[m % colours.length], mode === "paint" ? `${m + 1}` : ""));
  if (doing.span) hide(g, doing.span, side, colours[blocks.length % colours.length], "");
  if (mode === "pick") frame(g, [...model.get("picked"), 1, 1], side, colours[0], 3);
  if (mode === "paint" && canvas.matches(":focus")) frame(g, [...doing.cursor, 1, 1], side, "#000", 2);
}

/** A block: a tint, hatching and a number, so that it shows on any picture and without colour. */
function hide(g, [top, left, rows, columns], side, colour, number) {
  const [x, y, width, height] = [left, top, columns, rows].map((n) => n * side);
  g.save();
  g.beginPath();
  g.rect(x, y, width, height);
  g.clip();
  g.globalAlpha = number ? 0.6 : 0.25;
  g.fillStyle = colour;
  g.fillRect(x, y, width, height);
  g.globalAlpha = 0.7;
  g.strokeStyle = "#fff";
  g.lineWidth = Math.max(side / 20, 1);
  g.beginPath();
  for (let d = -height; d < width; d += side / 2) g.moveTo(x + d, y + height), g.lineTo(x + d + height, y);
  g.stroke();
  g.restore();
  frame(g, [top, left, rows, columns], side, colour, 3);
  if (!number) return;
  g.font = `bold ${Math.round(side * 0.6)}px sans-serif`;
  g.textAlign = "center";
  g.textBaseline = "middle";
  g.lineWidth = side / 8;
  g.strokeStyle = "#000";
  g.strokeText(number, x + width / 2, y + height / 2);
  g.fillStyle = "#fff";
  g.fillText(number, x + width / 2, y + height / 2);
}

/** The outline of a block, with a white rim: visible on every picture. */
function frame(g, [top, left, rows, columns], side, colour, thick) {
  const ratio = window.devicePixelRatio || 1;
  for (const [extra, shade] of [[2, "#fff"], [0, colour]]) {
    g.lineWidth = (thick + extra) * ratio;
    g.strokeStyle = shade;
    g.strokeRect(left * side, top * side, columns * side, rows * side);
  }
}

export { clamp, frame, hide, inside, names };
