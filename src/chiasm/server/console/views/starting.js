// Before the server can answer: what it is doing, or that it cannot be reached.

import { Notice } from "../components/notice.js";
import { html } from "../preact.js";

const TITLES = {
  starting: "Getting ready",
  unreachable: "The server does not answer",
  failed: "The server cannot start",
};

export function Starting({ state, message }) {
  if (state === "connecting") return html`<main class="page" aria-busy="true"></main>`;
  return html`<main class="page">
    <${Notice} logo title=${TITLES[state]} role="status">
      <p>${message}</p>
      <p class="hint">This page goes on by itself.</p>
    <//>
  </main>`;
}
