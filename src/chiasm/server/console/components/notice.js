// One quiet message in the middle of the page: nothing here yet, nothing found, something failed.

import { html } from "../preact.js";
import { Icon } from "./icons.js";

export function Notice({ icon, title, role, children }) {
  return html`<div class="notice" role=${role}>
    ${icon && html`<span class="notice-icon"><${Icon} name=${icon} /></span>`}
    <h2>${title}</h2>
    ${children}
  </div>`;
}
