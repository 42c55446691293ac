// What is being added, file by file, in a corner of the page.

import { clear, count, files, retryFailed, stop, summary, tally } from "../adding.js";
import { api } from "../api.js";
import { html, useState } from "../preact.js";
import { follow, href } from "../route.js";
import { Icon } from "./icons.js";

const SHOWN = 200; // rows; a folder can hold thousands

const WORDS = {
  waiting: "Waiting",
  sending: "Sending",
  added: "Added",
  updated: "Updated",
  duplicate: "Already there",
  near_duplicate: "Added, near duplicate",
  failed: "Failed",
  stopped: "Stopped",
};

const MARKS = { added: "check", updated: "check", duplicate: "copies", near_duplicate: "copies" };

export function AddingTray() {
  const [folded, setFolded] = useState(false);
  const counts = tally.value;
  if (!counts.total) return null;
  const busy = counts.left > 0;
  return html`<section class=${`adding ${folded ? "folded" : ""}`} aria-label="Adding pictures">
    <header>
      <div>
        <h2>${busy ? `Adding ${count(counts.total, "picture")}` : summary(counts)}</h2>
        ${busy && html`<p>${counts.done} of ${counts.total}${counts.failed ? `, ${counts.failed} failed` : ""}</p>`}
      </div>
      ${busy
        ? html`<button type="button" class="button small" onClick=${stop}>Stop</button>`
        : (counts.failed > 0 || counts.stopped > 0) &&
          html`<button type="button" class="button small" onClick=${retryFailed}>Try again</button>`}
      <button
        type="button"
        class=${`button quiet round fold ${folded ? "" : "turned"}`}
        aria-expanded=${String(!folded)}
        aria-label=${folded ? "Show the files" : "Hide the files"}
        onClick=${() => setFolded(!folded)}
      >
        <${Icon} name="down" />
      </button>
      ${!busy &&
      html`<button type="button" class="button quiet round" aria-label="Close" onClick=${clear}><${Icon} name="close" /></button>`}
    </header>
    <progress aria-label="Files added" value=${counts.done} max=${counts.total} hidden=${!busy}></progress>
    ${!folded && html`<${FileList} />`}
  </section>`;
}

// Failures first: they are what a person has to look at.
function FileList() {
  const all = files.value;
  const ordered = [
    ...all.filter(({ status }) => status === "failed"),
    ...all.filter(({ status }) => status === "sending"),
    ...all.filter(({ status }) => status !== "failed" && status !== "sending"),
  ];
  const hidden = ordered.length - SHOWN;
  return html`<ul tabindex="0" aria-label="Files">
    ${ordered.slice(0, SHOWN).map((entry) => html`<${FileRow} key=${entry.key} ...${entry} />`)}
    ${hidden > 0 && html`<li class="adding-rest">and ${count(hidden, "more file")}</li>`}
  </ul>`;
}

function FileRow({ name, status, progress, id, of, collection, reason }) {
  const shown = id ?? of;
  return html`<li class=${`adding-file ${status}`}>
    <span class="adding-picture">
      ${shown
        ? html`<img src=${api.thumbnailUrl(collection, shown)} alt="" />`
        : html`<${Icon} name=${status === "failed" ? "alert" : "picture"} />`}
    </span>
    <span class="adding-name" title=${name}>
      ${shown
        ? html`<a href=${href({ collection, item: shown })} onClick=${(event) => follow(event, { collection, item: shown })}>${name.split("/").at(-1)}</a>`
        : name.split("/").at(-1)}
    </span>
    <span class="adding-status">${reason ?? (status === "sending" && progress === 1 ? "Embedding" : WORDS[status])}</span>
    ${status === "sending" && html`<progress aria-label=${`Sending ${name}`} value=${progress} max="1"></progress>`}
    ${MARKS[status] && html`<span class="adding-mark"><${Icon} name=${MARKS[status]} /></span>`}
  </li>`;
}
