// One quiet message in the middle of the page: nothing here yet, nothing found, something failed.

import { html } from "../preact.js";
import { Icon } from "./icons.js";

// logo: the product's own sign, breathing, in place of an icon; for waiting.
export function Notice({ icon, logo, title, role, children }) {
  return html`<div class="notice" role=${role}>
    ${icon && html`<span class="notice-icon"><${Icon} name=${icon} /></span>`}
    ${logo && html`<img class="breathing" src="logo.svg" alt="" width="64" height="64" />`}
    <h2>${title}</h2>
    ${children}
  </div>`;
}
