// Small questions in a dialog: "really delete?" and "what shall it be called?".

import { html, signal, useId, useLayoutEffect, useRef, useState } from "../preact.js";

const question = signal(null);

// { title, text, action, danger? } → true or false
export function confirm(options) {
  return new Promise((resolve) => (question.value = { ...options, resolve }));
}

// { title, text, label, action, submit } → what `submit(value)` resolved to, or null. An error
// thrown by `submit` is shown in the dialog, which stays open.
export function ask(options) {
  return new Promise((resolve) => (question.value = { ...options, resolve }));
}

export function AskDialog() {
  const asked = question.value;
  return asked && html`<${Question} key=${asked.title} ...${asked} />`;
}

function Question({ title, text, label, action, danger, submit, resolve }) {
  const dialog = useRef(null);
  const [value, setValue] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const id = useId();

  useLayoutEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close(); // which gives the focus back; only taken away, it would be lost
  }, []);

  const finish = (answer) => {
    question.value = null;
    resolve(answer);
  };
  const cancel = (event) => {
    event.preventDefault();
    finish(submit ? null : false);
  };
  const onSubmit = async (event) => {
    event.preventDefault();
    if (!submit) return finish(true);
    setBusy(true);
    try {
      finish(await submit(value.trim()));
    } catch (failure) {
      setError(failure.message);
      setBusy(false);
    }
  };

  return html`<dialog ref=${dialog} class="ask" aria-labelledby=${`${id}-title`} aria-describedby=${`${id}-text`} onCancel=${cancel}>
    <form onSubmit=${onSubmit}>
      <h2 id=${`${id}-title`}>${title}</h2>
      <p id=${`${id}-text`}>${text}</p>
      ${label &&
      html`<label class="field">
        <span>${label}</span>
        <input
          type="text"
          required
          autofocus
          autocomplete="off"
          spellcheck=${false}
          value=${value}
          aria-invalid=${error ? "true" : undefined}
          onInput=${(event) => setValue(event.target.value)}
        />
      </label>`}
      ${error && html`<p class="field-error" role="alert">${error}</p>`}
      <div class="ask-actions">
        <button type="button" class="button" autofocus=${danger} onClick=${cancel}>Cancel</button>
        <button type="submit" class=${`button ${danger ? "danger" : "primary"}`} disabled=${busy} autofocus=${!danger && !label}>${action}</button>
      </div>
    </form>
  </dialog>`;
}
