// What a widget of the notebooks expects of its model (get, set, save_changes, on, off), without a kernel behind it.

export class Model {
  constructor(values) {
    this.values = values;
    this.heard = {};
    this.changed = new Set();
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    this.values[name] = value;
    this.changed.add(name);
  }

  /** Tell the listeners of what was set since the last time. */
  save_changes() {
    const changed = [...this.changed];
    this.changed.clear();
    for (const name of changed) for (const answer of [...(this.heard[`change:${name}`] ?? [])]) answer();
  }

  /** Set several values and tell. */
  put(values) {
    for (const [name, value] of Object.entries(values)) this.set(name, value);
    this.save_changes();
  }

  on(event, answer) {
    (this.heard[event] ??= []).push(answer);
  }

  off(event, answer) {
    this.heard[event] = (this.heard[event] ?? []).filter((other) => other !== answer);
  }
}
