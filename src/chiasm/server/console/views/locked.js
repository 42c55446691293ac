// Where a server answers to holders of a key alone: the place to put it in.

import { api } from "../api.js";
import { Notice } from "../components/notice.js";
import { html, useState } from "../preact.js";
import { connect } from "../state.js";

export function Locked() {
  const [trouble, setTrouble] = useState("");

  async function unlock(event) {
    event.preventDefault();
    const field = event.currentTarget.elements.key;
    try {
      await api.beginSession(field.value.trim());
    } catch (error) {
      setTrouble(error.message);
      field.select();
      return;
    }
    connect();
  }

  return html`<main id="main" class="page">
    <h1 class="visually-hidden">Locked</h1>
    <${Notice} icon="key" title="This server asks for a key">
      <form class="unlock" onSubmit=${unlock}>
        <label for="key">Your key</label>
        <input id="key" name="key" type="password" autocomplete="off" spellcheck=${false} placeholder="chk-…" required autofocus />
        <button class="button primary">Go on</button>
      </form>
      ${trouble && html`<p role="alert">${trouble}</p>`}
      <p class="hint">Whoever runs the server makes them: <code>chiasm keys create</code>. This browser forgets it when it is closed.</p>
    <//>
  </main>`;
}
