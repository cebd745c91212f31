// How a prediction stands to what was found, in the words of toy_ijepa/widgets/predict.py.

const NEAR = 0.1; // a number is right within a tenth of the answer; a share in %, within five points
const NEAR_POINTS = 5;

/** A number with so many digits, as Python's format(value, ".3g"). */
export function digits(value, count) {
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(count - 1).split("e");
  if (+power < -4 || +power >= count) {
    const sign = power[0] === "-" ? "-" : "+";
    return `${+mantissa}e${sign}${power.replace(/^[+-]/, "").padStart(2, "0")}`;
  }
  return `${+value.toPrecision(count)}`;
}

/** How far a number is off: in points for shares, else as a factor where the signs agree. */
export function distance(said, found, unit) {
  const off = said - found;
  const side = off > 0 ? "high" : "low";
  if (unit.includes("%")) {
    return Math.abs(off) <= NEAR_POINTS
      ? "right, within five points"
      : `${Math.abs(off).toFixed(0)} points too ${side}`;
  }
  if (Math.abs(off) <= NEAR * Math.abs(found)) return off === 0 ? "right" : "right, within a tenth";
  if (said * found > 0) return `${digits(Math.max(said / found, found / said), 2)} times too ${side}`;
  return `too ${side} by ${digits(Math.abs(off), 3)}`;
}

/** A question of a chapter (kind, unit, found) and what was said, "" for nothing: a sentence. */
export function compare({ kind, unit, found }, said) {
  if (said === "") return "You made no prediction.";
  if (kind === "words") return `You wrote: ${said}`;
  if (kind === "choice") return `You said ${said}: ${said === found ? "right." : "not so."}`;
  return `You said ${said}${unit}: ${distance(Number(said), Number(found), unit)}.`;
}

const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

/** Rows of text as CSV. */
export function csv(rows) {
  return rows.map((row) => row.map((cell) => quoted(`${cell}`)).join(",")).join("\r\n") + "\r\n";
}
