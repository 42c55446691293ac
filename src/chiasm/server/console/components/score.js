// A cosine as a number, and a bar that compares it with the best answer's.

import { html } from "../preact.js";

export function Score({ value, best }) {
  const share = best > 0 ? Math.max(0, Math.min(1, value / best)) : 0;
  return html`<span class="score">
    <span class="visually-hidden">score </span>
    <span class="score-value">${value.toFixed(3)}</span>
    <span class="score-bar" style=${{ "--share": share.toFixed(4) }}></span>
  </span>`;
}
