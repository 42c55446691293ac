// A question, its pictures, and what was answered.

import { isPart, retry, rewrite } from "../conversation.js";
import { html, useState } from "../preact.js";
import { Budgets } from "./budgets.js";
import { Icon } from "./icons.js";

// last: whether it is the newest one, which can be asked again.
export function Turn({ turn, last, context }) {
  const { question, pictures, status, answer, usage, error, json, model } = turn;
  const waiting = status === "asked" || status === "answering";
  return html`<article class="turn" aria-busy=${String(waiting)}>
    ${pictures.length > 0 &&
    html`<ul class=${`asked-pictures ${pictures.length > 1 ? "several" : ""}`} aria-label="Pictures of this question">
      ${pictures.map((picture) => html`<li key=${picture.key}><${Picture} ...${picture} /></li>`)}
    </ul>`}
    <h2 class="asked">${question}</h2>
    <div class="answered">
      ${status === "asked" && html`<p class="waiting-words"><span class="breathing-dot" aria-hidden="true"></span>${waitingWords(turn)}</p>`}
      ${answer && html`<p class=${`answer ${json ? "code" : ""} ${waiting ? "growing" : ""}`}>${answer}</p>`}
      ${status === "done" && !answer && html`<p class="remark">The model ended its answer before the first word.</p>`}
      ${error && html`<p class="turn-error" role="alert"><${Icon} name="alert" /><span>${error}</span></p>`}
      <${Remark} turn=${turn} />
      ${usage && html`<${Budgets} usage=${usage} context=${context} open=${last} />`}
      ${!waiting &&
      last &&
      html`<div class="turn-actions">
        <button type="button" class="button small" onClick=${retry}><${Icon} name="again" /><span>Ask again</span></button>
        <button type="button" class="button small" onClick=${rewrite}><${Icon} name="pencil" /><span>Edit the question</span></button>
      </div>`}
      ${model && status === "done" && html`<p class="visually-hidden">Answered by ${model}.</p>`}
    </div>
  </article>`;
}

function waitingWords({ pictures }) {
  if (!pictures.length) return "Reading the question…";
  return `Looking at the picture${pictures.length > 1 ? "s" : ""}…`;
}

function Remark({ turn }) {
  const { status, finish } = turn;
  const words = [];
  if (status === "stopped") words.push("Stopped. The server does not count the budgets of what was given up.");
  if (status === "done" && finish === "length") words.push("The answer reached the most tokens it may have.");
  if (["done", "stopped", "failed"].includes(status) && !isPart(turn)) words.push("This question is left out of the conversation that follows.");
  return words.length > 0 && html`<p class="remark">${words.join(" ")}</p>`;
}

// Some formats the server reads and a browser does not.
function Picture({ url, name }) {
  const [broken, setBroken] = useState(false);
  return broken
    ? html`<span class="picture-blank"><${Icon} name="picture" /><span>${name}</span></span>`
    : html`<img src=${url} alt=${name} onError=${() => setBroken(true)} />`;
}
