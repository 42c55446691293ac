// The pictures of the question that is being written.

import { detach, draft } from "../draft.js";
import { html, useState } from "../preact.js";
import { Icon } from "./icons.js";

// large: as what the page is about, while nothing else is on it.
export function Attached({ large }) {
  const { pictures } = draft.value;
  return (
    pictures.length > 0 &&
    html`<ul class=${`attached ${large ? "large" : ""}`} aria-label="Pictures to ask about">
      ${pictures.map((picture) => html`<li key=${picture.key}><${Picture} picture=${picture} /></li>`)}
    </ul>`
  );
}

// Some formats the server reads and a browser does not.
function Picture({ picture }) {
  const [broken, setBroken] = useState(false);
  return html`<span class="picture-chip" title=${picture.name}>
    ${broken
      ? html`<span class="picture-chip-blank"><${Icon} name="picture" /><span>${picture.name}</span></span>`
      : html`<img src=${picture.url} alt=${picture.name} onError=${() => setBroken(true)} />`}
    <button type="button" aria-label=${`Remove ${picture.name}`} onClick=${() => detach(picture)}><${Icon} name="close" /></button>
  </span>`;
}
