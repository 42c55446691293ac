// Metadata conditions as chips. All of them must hold.

import { FilterError, parseCondition } from "../filters.js";
import { html, useId, useLayoutEffect, useRef, useState } from "../preact.js";
import { go, route } from "../route.js";
import { Icon } from "./icons.js";

// keys: metadata keys seen so far, offered while typing.
export function FilterBar({ keys }) {
  const { where } = route.value;
  const [open, setOpen] = useState(false);
  const [typed, setTyped] = useState("");
  const [error, setError] = useState("");
  const input = useRef(null);
  const id = useId();

  useLayoutEffect(() => {
    if (open) input.current.focus();
  }, [open]);

  const add = (event) => {
    event.preventDefault();
    const condition = typed.trim();
    if (!condition) return;
    try {
      parseCondition(condition);
    } catch (failure) {
      if (!(failure instanceof FilterError)) throw failure;
      setError(failure.message);
      return;
    }
    if (!where.includes(condition)) go({ where: [...where, condition] });
    setTyped("");
    setError("");
  };
  const remove = (condition) => go({ where: where.filter((other) => other !== condition) });
  const onKeyDown = (event) => {
    if (event.key === "Backspace" && !typed && where.length) remove(where.at(-1));
    if (event.key === "Escape") {
      event.preventDefault();
      setOpen(false);
      setTyped("");
      setError("");
    }
  };

  return html`<form class="filter-bar" onSubmit=${add} aria-label="Filter by metadata">
    ${where.map(
      (condition) => html`<span class="chip" key=${condition}>
        <span>${condition}</span>
        <button type="button" aria-label=${`Remove the filter ${condition}`} onClick=${() => remove(condition)}>
          <${Icon} name="close" />
        </button>
      </span>`,
    )}
    ${open
      ? html`<span class="filter-input">
          <input
            ref=${input}
            type="text"
            list=${id}
            value=${typed}
            placeholder="key = value"
            aria-label="Filter, for example color = red or price < 10"
            aria-invalid=${error ? "true" : undefined}
            aria-describedby=${error ? `${id}-error` : undefined}
            autocomplete="off"
            autocapitalize="none"
            spellcheck=${false}
            onInput=${(event) => (setTyped(event.target.value), setError(""))}
            onKeyDown=${onKeyDown}
            onBlur=${() => typed || setOpen(false)}
          />
          <datalist id=${id}>${keys.map((key) => html`<option value=${`${key} = `} />`)}</datalist>
          <button type="submit" class="button small">Add</button>
        </span>`
      : html`<button type="button" class="chip add" onClick=${() => setOpen(true)}>
          <${Icon} name="filter" /><span>Filter</span>
        </button>`}
    ${error && html`<p class="field-error" id=${`${id}-error`} role="alert">${error}</p>`}
  </form>`;
}
