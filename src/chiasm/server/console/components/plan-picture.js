// The picture as the chosen model sees it: at its size, under the grid of its crops or patches.

import { allow, budget, chosenRow, fitted, picture } from "../planning.js";
import { html, useEffect, useId, useRef } from "../preact.js";
import { compute, dollars, plural } from "../plan-words.js";

const MOST_PIXELS = 4096; // of a canvas's side
const CELLS = [512, 448, 364, 336, 768, 32, 28, 16, 14]; // pixels that models cut pictures into

export function PlanPicture() {
  const row = budget.value === null ? chosenRow() : (fitted.value ?? chosenRow());
  const image = row?.images[0];
  const { width, height } = picture.value;
  const [across, down] = image ? [image.width, image.height] : [width, height];
  return html`<figure class="plan-figure">
    <div class="plan-frame" style=${{ "--ratio": `${across} / ${down}`, "--across": String(across / down) }}>
      <${Seen} width=${across} height=${down} />
      ${image?.grid && html`<${Grid} image=${image} />`}
    </div>
    <figcaption>${row ? html`<${Caption} row=${row} image=${image} />` : html`<span>${width.toLocaleString()} × ${height.toLocaleString()} pixels</span>`}</figcaption>
    ${row && html`<${Budget} whole=${chosenRow()} />`}
  </figure>`;
}

// Drawn with as many pixels as the model has of it, so that what is lost is lost here as well.
function Seen({ width, height }) {
  const canvas = useRef(null);
  const { url, name } = picture.value;
  useEffect(() => {
    let gone = false;
    const scale = Math.min(1, MOST_PIXELS / Math.max(width, height));
    const shown = canvas.current;
    const draw = (image) => {
      if (gone) return;
      shown.width = Math.max(1, Math.round(width * scale));
      shown.height = Math.max(1, Math.round(height * scale));
      const context = shown.getContext("2d");
      context.imageSmoothingQuality = "high";
      if (image) context.drawImage(image, 0, 0, shown.width, shown.height);
    };
    if (!url) draw(null);
    else {
      const image = new Image();
      image.src = url;
      image.decode().then(() => draw(image), () => {});
    }
    return () => (gone = true);
  }, [url, width, height]);
  return html`<canvas ref=${canvas} class=${url ? "" : "blank"} role="img" aria-label=${url ? name : "No picture: a size alone"}></canvas>`;
}

function Grid({ image }) {
  const { width, height } = image;
  const [columns, rows] = image.grid;
  const cell = CELLS.find((side) => Math.ceil(width / side) === columns && Math.ceil(height / side) === rows);
  const [across, down] = cell ? [cell, cell] : [width / columns, height / rows];
  const lines = [];
  for (let at = 1; at < columns; at += 1) lines.push(`M${at * across} 0V${height}`);
  for (let at = 1; at < rows; at += 1) lines.push(`M0 ${at * down}H${width}`);
  if (!lines.length) return null;
  const fine = Math.max(columns, rows) > 24 ? "fine" : "";
  return html`<svg class=${`plan-grid ${fine}`} viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" aria-hidden="true">
    <path d=${lines.join("")} /><path class="over" d=${lines.join("")} />
  </svg>`;
}

function Caption({ row, image }) {
  if (row.refusal) return html`<strong>${row.model}</strong><span class="plan-refusal">${row.refusal}</span>`;
  const cells = image.grid ? image.grid[0] * image.grid[1] : 0;
  const parts = [image.tiles > 1 && cells > 1 && `cut into ${plural(cells, "crop")}`, image.tiles > cells && cells > 0 && "with an overview"];
  const cut = parts.filter(Boolean).map((words) => `, ${words}`).join("");
  const [width, height] = image.sent;
  const smaller = width !== picture.value.width || height !== picture.value.height;
  return html`<strong>${row.model}</strong>
    <span>sees ${image.width.toLocaleString()} × ${image.height.toLocaleString()} pixels${cut}</span>
    <span class="plan-numbers">
      <span class="image">${plural(row.image_tokens, "image token")}</span>
      <span class="text">${plural(row.text_tokens, "text token")}${uncertain(row)}</span>
    </span>
    ${smaller && html`<span>sent at ${width.toLocaleString()} × ${height.toLocaleString()}, to keep within the budget</span>`}
    <span>${moneyWords(row)}</span>
    ${row.vision_flops !== null && html`<span>${compute(row)} to read it: vision and language</span>`}
    ${row.seconds_to_first_token !== null && html`<span>first token after about ${row.seconds_to_first_token.toFixed(2)} s, as measured of late</span>`}
    <span class="plan-source">${row.source}${row.read ? `, read ${row.read}` : ""}${row.price_source ? `; prices: ${row.price_source}` : ""}</span>`;
}

function uncertain({ text_tokens: tokens, text_error: share }) {
  const off = Math.round(tokens * share);
  return off ? ` ± ${off.toLocaleString()}` : "";
}

function moneyWords({ cost, answer_tokens: answer }) {
  if (cost === null) return "No list price is known.";
  return `${dollars(cost)} with an answer of ${plural(answer, "token")}; ${dollars(cost * 1000)} for a thousand`;
}

function Budget({ whole }) {
  const id = useId();
  const most = whole.image_tokens;
  if (whole.refusal || most < 2) return null;
  const value = Math.min(budget.value ?? most, most);
  return html`<div class="plan-budget">
    <label for=${id}><span>Image tokens at most</span><output for=${id}>${value.toLocaleString()}</output></label>
    <input id=${id} type="range" min="1" max=${most} step="1" value=${value} onInput=${(event) => allow(Number(event.target.value))} />
  </div>`;
}
