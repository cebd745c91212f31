// A form of questions; each answer is committed with a button or Enter and then stays. What the traits mean is said
// in predict.py.

/** The inputs of one question, and a function that reads them: { answer, problem }. */
function inputs(question, name) {
  if (question.kind === "choice") {
    const fields = question.options.map((option) => {
      const field = document.createElement("input");
      field.type = "radio";
      field.name = name;
      field.value = option;
      return field;
    });
    const read = () => {
      const chosen = fields.find((field) => field.checked);
      return chosen ? { answer: chosen.value } : { problem: "Choose one first." };
    };
    return { fields, read, labels: question.options };
  }
  const field = document.createElement("input");
  field.type = "text";
  const number = question.kind === "number";
  if (number) field.inputMode = "decimal";
  const read = () => {
    const text = field.value.trim();
    if (!text) return { problem: number ? "Write a number first." : "Write a word or two first." };
    if (!number) return { answer: text };
    const value = Number(text.replace("%", "").replace(",", "."));
    return Number.isFinite(value) ? { answer: `${value}` } : { problem: `A number is asked, such as 12.5; not "${text}".` };
  };
  return { fields: [field], read, labels: [question.unit ?? ""] };
}

/** One question: its inputs, a button, and a line that says what became of it. */
function ask(model, place, name) {
  const question = model.get("questions")[place];
  const box = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = question.label;
  const { fields, read, labels } = inputs(question, `${name}-${place}`);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Commit";
  button.setAttribute("aria-label", `Commit: ${question.label}`);
  const status = document.createElement("p");
  status.setAttribute("aria-live", "polite");
  box.append(legend);
  fields.forEach((field, n) => {
    const label = document.createElement("label");
    if (question.kind === "choice") label.append(field, ` ${labels[n]}`);
    else label.append(field, labels[n]);
    if (question.kind !== "choice") field.setAttribute("aria-label", `${question.label} ${labels[n]}`);
    // JupyterLab's own keys (d d deletes the cell) stay out while a field has the focus.
    field.dataset.lmSuppressShortcuts = "true";
    box.append(label);
  });
  box.append(button, status);

  const show = () => {
    const said = model.get("answers")[place];
    const outcome = model.get("outcomes")[place];
    for (const field of fields) {
      field.disabled = said !== "" || outcome !== "";
      if (said !== "" && field.type === "radio") field.checked = field.value === said;
      else if (said !== "") field.value = said;
    }
    button.hidden = said !== "" || outcome !== "";
    if (outcome !== "") status.textContent = outcome;
    else if (said !== "") status.textContent = "Committed. Run on: the answer comes near the end.";
  };
  const commit = () => {
    const { answer, problem } = read();
    if (problem) return (status.textContent = problem);
    const answers = [...model.get("answers")];
    answers[place] = answer;
    model.set("answers", answers);
    model.save_changes();
  };
  button.addEventListener("click", commit);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target === button || event.shiftKey || event.ctrlKey) return;
    event.preventDefault();
    event.stopPropagation();
    commit();
  });
  return { box, show };
}

function render({ model, el }) {
  const form = document.createElement("div");
  form.className = "ijepa-ask";
  const name = `ijepa-ask-${Math.random().toString(36).slice(2)}`;
  const all = model.get("questions").map((_, place) => ask(model, place, name));
  form.append(...all.map(({ box }) => box));
  el.append(form);
  const show = () => all.forEach((question) => question.show());
  model.on("change:answers", show);
  model.on("change:outcomes", show);
  show();
  return () => {
    model.off("change:answers", show);
    model.off("change:outcomes", show);
  };
}

export default { render };
