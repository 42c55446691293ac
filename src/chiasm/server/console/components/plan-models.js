// Every model's tokens and cost, side by side. One of them is looked at: a radio button each, so
// that the arrow keys go from one to the next.

import { chosenRow, everyLevel, key, levels, look, rows } from "../planning.js";
import { compute, dollars, plural, providerName } from "../plan-words.js";
import { html, useState } from "../preact.js";

const ORDERS = {
  cost: { label: "Cost", of: (row) => row.cost ?? Infinity },
  tokens: { label: "Tokens", of: (row) => row.image_tokens + row.text_tokens },
  name: { label: "Name", of: (row) => row.model.toLowerCase() },
};
const BROKEN = 4; // a bar that is longer than so many times the usual one is broken off

export function PlanModels() {
  const [order, setOrder] = useState("cost");
  const [grouped, setGrouped] = useState(false);
  const found = rows.value;
  const shown = sorted(found ?? [], order);
  const scales = { tokens: scaleOf(shown.map(tokensOf)), cost: scaleOf(shown.map(({ cost }) => cost ?? 0)) };
  return html`<section class="plan-models" aria-label="Models" aria-busy=${String(!found)}>
    <div class="plan-tools">
      <label class="plan-order"><span>Sort by</span>
        <select value=${order} onChange=${(event) => setOrder(event.target.value)}>
          ${Object.entries(ORDERS).map(([name, { label }]) => html`<option key=${name} value=${name}>${label}</option>`)}
        </select>
      </label>
      <label class="plan-check"><input type="checkbox" checked=${grouped} onChange=${(event) => setGrouped(event.target.checked)} /><span>By provider</span></label>
      <label class="plan-check"><input type="checkbox" checked=${everyLevel} onChange=${(event) => levels(event.target.checked)} /><span>Every level of detail</span></label>
    </div>
    <div class="plan-legend" aria-hidden="true"><span></span><span>Seen at</span><span class="plan-numbers"><span class="image">Image tokens</span><span class="text">text</span></span><span>Cost of a request</span></div>
    ${groups(shown, grouped).map(([name, members]) => html`<fieldset key=${name} class="plan-rows">
      <legend class=${grouped ? "" : "visually-hidden"}>${name}</legend>
      ${members.map((row) => html`<${Row} key=${key(row)} row=${row} scales=${scales} />`)}
    </fieldset>`)}
  </section>`;
}

function sorted(found, order) {
  const { of } = ORDERS[order];
  return [...found].sort((a, b) => {
    const [one, other] = [of(a), of(b)];
    if (Boolean(a.refusal) !== Boolean(b.refusal)) return a.refusal ? 1 : -1;
    return one < other ? -1 : one > other ? 1 : tokensOf(a) - tokensOf(b);
  });
}

function groups(shown, grouped) {
  if (!grouped) return [["Models", shown]];
  const found = new Map();
  for (const row of shown) {
    const name = providerName(row.provider);
    found.set(name, [...(found.get(name) ?? []), row]);
  }
  return [...found];
}

function tokensOf(row) {
  return row.image_tokens + row.text_tokens;
}

// The value of a full bar: the largest, unless that would leave nothing of the others.
function scaleOf(values) {
  const positive = values.filter((value) => value > 0).sort((a, b) => a - b);
  if (!positive.length) return 1;
  return Math.min(positive.at(-1), BROKEN * positive[Math.floor(positive.length / 2)]);
}

function Row({ row, scales }) {
  const { model, detail, refusal } = row;
  const slash = model.lastIndexOf("/") + 1;
  const level = detail === "auto" ? "" : detail;
  return html`<label class=${`plan-row ${refusal ? "refused" : ""}`}>
    <input type="radio" class="visually-hidden" name="planned-model" checked=${chosenRow() && key(chosenRow()) === key(row)} onChange=${() => look(row)} />
    <span class="plan-name"><span class="plan-owner">${model.slice(0, slash)}</span><strong>${model.slice(slash)}</strong>${level && html`<span class="plan-level">${level}</span>`}</span>
    ${refusal
      ? html`<span class="plan-refusal">${refusal}</span>`
      : html`<span class="plan-seen">${seen(row)}</span>
          <span class="plan-measure tokens">
            <${Bar} parts=${[["image", row.image_tokens], ["text", row.text_tokens]]} of=${scales.tokens} />
            <span class="plan-value">${tokensOf(row).toLocaleString()}<span class="visually-hidden"> tokens, ${plural(row.image_tokens, "image token")}</span></span>
          </span>
          <span class="plan-measure cost">
            ${row.cost === null
              ? html`<span class="plan-free">${row.vision_flops === null ? "no list price" : compute(row)}</span>`
              : html`<${Bar} parts=${[["money", row.cost]]} of=${scales.cost} /><span class="plan-value">${dollars(row.cost)}</span>`}
          </span>`}
  </label>`;
}

function seen({ images: [image] }) {
  return `${image.width}×${image.height}${image.tiles > 1 ? ` in ${image.tiles}` : ""}`;
}

function Bar({ parts, of }) {
  const whole = parts.reduce((sum, [, value]) => sum + value, 0);
  const shrink = whole > of ? of / whole : 1;
  return html`<span class=${`plan-bar ${shrink < 1 ? "broken" : ""}`} aria-hidden="true">
    ${parts.map(([name, value]) => value > 0 && html`<span key=${name} class=${name} style=${{ "--share": ((value * shrink) / of).toFixed(5) }}></span>`)}
  </span>`;
}
