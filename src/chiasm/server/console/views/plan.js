// What a picture costs of every model, before one is asked.

import { chooseFiles } from "../choose-files.js";
import { DropOverlay } from "../components/drop-overlay.js";
import { Icon } from "../components/icons.js";
import { PlanModels } from "../components/plan-models.js";
import { PlanPicture } from "../components/plan-picture.js";
import { choose, error, picture, prompt, size, write } from "../planning.js";
import { html, useEffect, useState } from "../preact.js";

const ZONES = () => [{ icon: "picture", title: "Plan it", detail: "It stays in this browser" }];
const first = ([file]) => choose(file);

export function Plan() {
  useEffect(() => {
    document.title = "Plan · chiasm";
    const onPaste = (event) => {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      choose(file);
    };
    document.addEventListener("paste", onPaste);
    return () => document.removeEventListener("paste", onPaste);
  }, []);

  return html`<main class="page plan" id="main">
      <div class="page-head">
        <h1>Plan</h1>
        ${picture.value && html`<button type="button" class="button" onClick=${open}><${Icon} name="picture" /><span>Another picture</span></button>`}
      </div>
      ${error.value && html`<p class="plan-error" role="alert"><${Icon} name="alert" /><span>${error}</span></p>`}
      ${picture.value ? html`<${Planned} />` : html`<${Welcome} />`}
    </main>
    <${DropOverlay} zones=${ZONES} onFiles=${first} />`;
}

function open() {
  chooseFiles({ onChoose: first, multiple: false });
}

function Planned() {
  return html`<div class="plan-columns">
    <section class="plan-side" aria-label="The picture">
      <${PlanPicture} />
      <${SizeForm} key=${`${picture.value.width}x${picture.value.height}`} />
      <label class="field"><span>Asked about it</span>
        <textarea rows="2" value=${prompt} onInput=${(event) => write(event.target.value)}></textarea>
      </label>
    </section>
    <${PlanModels} />
  </div>`;
}

function Welcome() {
  return html`<div class="plan-welcome">
    <p class="plan-lead">See how many tokens a picture takes of each model, at which size it is looked at, and what that costs. Nothing is sent to any of them.</p>
    <button type="button" class="welcome-drop" onClick=${open}>
      <span class="notice-icon"><${Icon} name="picture" /></span>
      <strong>Choose a picture</strong>
      <span><span class="with-pointer">or drop or paste one anywhere on this page. </span>It stays in this browser: its size is all that is needed.</span>
    </button>
    <div class="plan-or"><span>or type a size</span></div>
    <${SizeForm} />
  </div>`;
}

function SizeForm() {
  const [width, setWidth] = useState(String(picture.value?.width ?? 1920));
  const [height, setHeight] = useState(String(picture.value?.height ?? 1080));
  const valid = [width, height].every((text) => /^[1-9]\d{0,5}$/.test(text.trim()));
  const changed = !picture.value || Number(width) !== picture.value.width || Number(height) !== picture.value.height;
  const submit = (event) => {
    event.preventDefault();
    if (valid && changed) size(Number(width), Number(height));
  };
  return html`<form class=${`plan-size ${changed ? "changed" : ""}`} onSubmit=${submit} aria-label="Size of the picture">
    <label class="field"><span>Width</span><input type="text" inputmode="numeric" value=${width} aria-invalid=${valid ? undefined : "true"} onInput=${(event) => setWidth(event.target.value)} /></label>
    <span class="plan-times" aria-hidden="true">×</span>
    <label class="field"><span>Height</span><input type="text" inputmode="numeric" value=${height} aria-invalid=${valid ? undefined : "true"} onInput=${(event) => setHeight(event.target.value)} /></label>
    ${changed && html`<button type="submit" class="button" disabled=${!valid}>Plan this size</button>`}
  </form>`;
}
