// The three budgets of a request: as bars, and as the sentences that the bars are drawn from.

import { contextParts, flops, percent, speed, stages } from "../budgets.js";
import { html } from "../preact.js";

// usage: as the API gives it. context: the places that the model has, if it is known.
export function Budgets({ usage, context, open }) {
  const { language_flops: language } = usage.compute;
  return html`<details class="budgets" open=${open}>
    <summary><span>${[speed(usage), places(usage, context)].filter(Boolean).join(" · ")}</span></summary>
    <dl>
      ${language > 0 ? html`<${Compute} usage=${usage} />` : html`<${Budget} name="Compute" value="not known" why="The model is run by another server, which does not say." />`}
      <${Context} usage=${usage} context=${context} />
    </dl>
    <p class="budget-why">${timeWords(usage)}</p>
  </details>`;
}

function Compute({ usage }) {
  const { vision_flops: vision, language_flops: language } = usage.compute;
  const all = vision + language;
  return html`
    <${Budget} name="Vision compute" value=${flops(vision)} share=${`${percent(vision / all)} of both`} why=${visionWhy(usage)}>
      <${Bar} parts=${[{ name: "image", count: vision }]} of=${all} />
    <//>
    <${Budget} name="Language compute" value=${flops(language)} share=${`${percent(language / all)} of both`} why="Spent by the language model on reading the prompt and writing the answer.">
      <${Bar} parts=${[{ name: "text", count: language }]} of=${all} />
    <//>`;
}

function places({ total_tokens: used }, context) {
  const of = context ? ` of ${context.toLocaleString()}` : "";
  return `${used.toLocaleString()}${of} tokens`;
}

function timeWords(usage) {
  const all = stages(usage);
  return all && `Time at the server: ${all}.`;
}

function visionWhy({ images, compute }) {
  if (!images) return "Nothing was spent: there is no picture in the conversation.";
  if (!compute.vision_flops) return "Nothing was spent: every picture had been looked at before.";
  return "Spent by the image tower on pictures it had not looked at before.";
}

function Budget({ name, value, share, why, children }) {
  return html`<div class="budget">
    <dt>${name}</dt>
    <dd>
      <span class="budget-value"><strong>${value}</strong>${share && html`<span>${share}</span>`}</span>
      ${children}
      <span class="budget-why">${why}</span>
    </dd>
  </div>`;
}

function Context({ usage, context }) {
  const { total_tokens: used } = usage;
  const parts = contextParts(usage);
  const cached = usage.prompt_tokens_details.cached_tokens;
  const why = ["What the model holds in mind at once: pictures, text and its own answer."];
  if (cached) why.push("Cached tokens were read for an earlier question, and not read again.");
  return html`<${Budget} name="Context" value=${places(usage, context)} share=${context && `${percent(used / context)} full`} why=${why.join(" ")}>
    ${context && html`<${Bar} parts=${[{ name: "used", count: used }]} of=${context} thin />`}
    <${Bar} parts=${parts} of=${used} cached=${cached} />
    <span class="budget-parts">
      ${parts.map(({ name, count }) => html`<span key=${name} class=${name}>${count.toLocaleString()} ${name}</span>`)}
      <span class="cached">${cached.toLocaleString()} cached</span>
    </span>
  <//>`;
}

// cached: so many of the first places were not read again; a line below the bar.
function Bar({ parts, of, cached, thin }) {
  const drawn = parts.filter(({ count }) => count > 0);
  return html`<span class=${`bar ${thin ? "thin" : ""}`} aria-hidden="true">
    <span class="bar-parts">
      ${drawn.map(({ name, count }) => html`<span key=${name} class=${name} style=${{ "--share": share(count, of) }}></span>`)}
    </span>
    ${cached > 0 && html`<span class="bar-cached" style=${{ "--share": share(cached, of) }}></span>`}
  </span>`;
}

function share(count, of) {
  return Math.min(1, count / of).toFixed(5);
}
