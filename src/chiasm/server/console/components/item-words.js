// What people wrote about a picture: its text and its metadata, shown and edited.

import { equals, value as parseValue } from "../filters.js";
import { html, useLayoutEffect, useRef, useState } from "../preact.js";
import { follow, href } from "../route.js";
import { Icon } from "./icons.js";

export function ItemWords({ item, edit }) {
  const entries = Object.entries(item.metadata);
  return html`<section class="words" aria-label="Text and metadata">
    <p class=${item.text ? "item-text" : "item-text none"}>${item.text || "No text."}</p>
    ${entries.length > 0 &&
    html`<dl class="facts metadata">
      ${entries.map(([key, value]) => html`<div key=${key}><dt>${key}</dt><dd><${Value} name=${key} value=${value} /></dd></div>`)}
    </dl>`}
    <button type="button" class="button small" onClick=${edit}><${Icon} name="pencil" /><span>Edit</span></button>
  </section>`;
}

// A value leads to all pictures that share it.
function Value({ name, value }) {
  if (value === null || typeof value === "object") return JSON.stringify(value);
  const to = { where: [equals(name, value)], text: "", image: "", like: "", item: "" };
  return html`<a href=${href(to)} title=${`All pictures with ${name} = ${value}`} onClick=${(event) => follow(event, to)}>${String(value)}</a>`;
}

export function ItemEditor({ item, save, cancel }) {
  const [text, setText] = useState(item.text);
  const [rows, setRows] = useState(toRows(item.metadata));
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const first = useRef(null);
  const last = useRef(null);
  const [added, setAdded] = useState(0);

  // Before another key can be pressed, hence in layout effects.
  useLayoutEffect(() => first.current.focus(), []);
  useLayoutEffect(() => {
    if (added) last.current?.focus();
  }, [added]);

  const change = (index, changes) =>
    setRows(rows.map((row, other) => (other === index ? { ...row, ...changes } : row)));
  const addRow = () => {
    setRows([...rows, { key: "", value: "" }]);
    setAdded(added + 1);
  };
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await save({ text: text.trim(), metadata: fromRows(rows) });
    } catch (failure) {
      setError(failure.message);
      setBusy(false);
    }
  };

  return html`<form class="words editor" onSubmit=${submit} aria-label="Edit text and metadata">
    <label class="field">
      <span>Text</span>
      <textarea ref=${first} rows="3" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>
    </label>
    <fieldset>
      <legend>Metadata</legend>
      ${rows.map(
        (row, index) => html`<div class="editor-row">
          <input ref=${index === rows.length - 1 ? last : null} type="text" aria-label="Key" placeholder="key" value=${row.key} spellcheck=${false} autocapitalize="none" onInput=${(event) => change(index, { key: event.target.value })} />
          <input type="text" aria-label=${`Value of ${row.key || "the new key"}`} placeholder="value" value=${row.value} onInput=${(event) => change(index, { value: event.target.value })} />
          <button type="button" class="button quiet round" aria-label=${`Remove ${row.key || "this row"}`} onClick=${() => setRows(rows.filter((_, other) => other !== index))}><${Icon} name="close" /></button>
        </div>`,
      )}
      <button type="button" class="button small" onClick=${addRow}><${Icon} name="plus" /><span>Add a value</span></button>
    </fieldset>
    ${error && html`<p class="field-error" role="alert">${error}</p>`}
    <div class="item-actions">
      <button type="submit" class="button primary" disabled=${busy}>Save</button>
      <button type="button" class="button" onClick=${cancel}>Cancel</button>
    </div>
  </form>`;
}

// A text that would read as a number or a truth keeps its quotes, so that saving changes nothing
// that was not changed.
function toRows(metadata) {
  return Object.entries(metadata).map(([key, value]) => ({
    key,
    value: typeof value === "string" && parseValue(value) === value ? value : JSON.stringify(value),
  }));
}

function fromRows(rows) {
  const metadata = {};
  for (const { key, value } of rows) {
    const name = key.trim();
    if (!name && !value.trim()) continue;
    if (!name) throw new Error(`The value ${value} has no key.`);
    if (Object.hasOwn(metadata, name)) throw new Error(`The key ${name} is there twice.`);
    metadata[name] = /^[[{]/.test(value.trim()) ? JSON.parse(value) : parseValue(value);
  }
  return metadata;
}
