// How questions are answered: at the side of the page, over it on a phone.

import { change, DEFAULTS, model, parseSchema, settings } from "../chat-settings.js";
import { generators } from "../generators.js";
import { html, useId, useLayoutEffect, useRef } from "../preact.js";
import { Icon } from "./icons.js";

export function SettingsDrawer({ close }) {
  const dialog = useRef(null);
  const { maxTokens, temperature, seed, format } = settings.value;
  const chosen = model();

  useLayoutEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close(); // which gives the focus back; only taken away, it would be lost
  }, []);

  return html`<dialog ref=${dialog} class="drawer" aria-labelledby="settings-title" onCancel=${(event) => (event.preventDefault(), close())} onClick=${(event) => event.target === dialog.current && close()}>
    <form novalidate onSubmit=${(event) => (event.preventDefault(), close())}>
      <header>
        <h2 id="settings-title">Settings</h2>
        <button type="button" class="button quiet round" aria-label="Close" onClick=${close}><${Icon} name="close" /></button>
      </header>
      <${Setting} label="Model" hint=${chosen && modelHint(chosen)}>
        ${(described) => html`<select value=${chosen?.id} aria-describedby=${described} onChange=${(event) => change({ model: event.target.value })}>
          ${generators.value?.map(({ id }) => html`<option key=${id} value=${id}>${id}</option>`)}
        </select>`}
      <//>
      <${Setting} label="Most tokens of an answer" hint="Empty: as many as the server allows.">
        ${(described) => html`<${NumberField} value=${maxTokens} min="1" step="1" described=${described} onInput=${(value) => change({ maxTokens: value })} />`}
      <//>
      <${Setting} label="Temperature" hint="0 takes the likeliest token each time; up to 2 is more of a surprise.">
        ${(described) => html`<${NumberField} value=${temperature} min="0" max="2" step="0.1" described=${described} onInput=${(value) => change({ temperature: value })} />`}
      <//>
      <${Setting} label="Seed" hint="With a temperature, the same number gives the same answer. Empty: another one each time.">
        ${(described) => html`<${NumberField} value=${seed} step="1" described=${described} onInput=${(value) => change({ seed: value })} />`}
      <//>
      <${Setting} label="Form of the answer">
        ${(described) => html`<select value=${format} aria-describedby=${described} onChange=${(event) => change({ format: event.target.value })}>
          <option value="text">Free text</option>
          <option value="json_object">Any JSON object</option>
          <option value="json_schema">JSON that follows a schema</option>
        </select>`}
      <//>
      ${format === "json_schema" && html`<${SchemaField} />`}
      <div class="drawer-actions">
        <button type="button" class="button" onClick=${() => change(DEFAULTS)}>Back to the defaults</button>
        <button type="submit" class="button primary">Done</button>
      </div>
    </form>
  </dialog>`;
}

function modelHint({ context, vision }) {
  const places = context ? `A context of ${context.toLocaleString()} tokens; ` : "";
  const sight = vision ? "reads pictures and text." : "reads text alone, no pictures.";
  return places ? places + sight : sight.charAt(0).toUpperCase() + sight.slice(1);
}

// children(id of what describes the field) → the field
function Setting({ label, hint, error, children }) {
  const id = useId();
  return html`<div class="setting">
    <label class="field"><span>${label}</span>${children(hint || error ? id : undefined)}</label>
    ${error
      ? html`<p class="field-error" id=${id} role="alert">${error}</p>`
      : hint && html`<p class="setting-hint" id=${id}>${hint}</p>`}
  </div>`;
}

function NumberField({ value, min, max, step, described, onInput }) {
  return html`<input
    type="number"
    inputmode="decimal"
    min=${min}
    max=${max}
    step=${step}
    value=${value}
    aria-describedby=${described}
    onInput=${(event) => onInput(event.target.value)}
  />`;
}

function SchemaField() {
  const { schema } = settings.value;
  let error = "";
  try {
    parseSchema(schema);
  } catch (failure) {
    error = failure.message;
  }
  return html`<${Setting} label="JSON schema" error=${error} hint="The answer is held to it, token by token.">
    ${(described) => html`<textarea
      class="code"
      rows="10"
      spellcheck=${false}
      autocapitalize="none"
      value=${schema}
      aria-invalid=${error ? "true" : undefined}
      aria-describedby=${described}
      onInput=${(event) => change({ schema: event.target.value })}
    ></textarea>`}
  <//>`;
}
