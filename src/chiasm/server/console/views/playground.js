// Ask a model about pictures, watch it answer, and see what each answer cost.

import { model } from "../chat-settings.js";
import { chooseFiles } from "../choose-files.js";
import { Attached } from "../components/attached.js";
import { Composer } from "../components/composer.js";
import { DropOverlay } from "../components/drop-overlay.js";
import { Icon } from "../components/icons.js";
import { Notice } from "../components/notice.js";
import { SettingsDrawer } from "../components/settings-drawer.js";
import { Turn } from "../components/turn.js";
import { startAnew, turns } from "../conversation.js";
import { attach, draft, write } from "../draft.js";
import { absence, awaitGenerators, generators, NONE } from "../generators.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../preact.js";

// The dots are for a person to fill in.
const EXAMPLES = ["What is this?", "Is there a … in the picture?", "How many … are there?", "What colour is the …?"];
const BLANK = "…";

const ZONES = () => [{ icon: "picture", title: "Ask about it", detail: "One picture or several" }];

export function Playground() {
  useEffect(() => {
    document.title = "Playground · chiasm";
    const controller = new AbortController();
    awaitGenerators(controller.signal);
    return () => controller.abort();
  }, []);

  if (generators.value?.length) return html`<${Conversation} />`;
  return html`<main class="page" id="main" aria-busy=${String(!absence.value)}>
    <h1 class="visually-hidden">Playground</h1>
    ${absence.value && html`<${NoGenerator} error=${absence.value} />`}
  </main>`;
}

function Conversation() {
  const [open, setOpen] = useState(false);
  const field = useRef(null);
  const asked = turns.value;
  const served = model();
  const follow = useFollowing(asked);

  const begin = () => {
    startAnew();
    field.current.focus();
  };

  return html`<main class="page playground" id="main">
      <div class="page-head">
        <h1>Playground</h1>
        ${asked.length > 0 && html`<button type="button" class="button" onClick=${begin}><${Icon} name="plus" /><span>New conversation</span></button>`}
      </div>
      ${asked.length
        ? html`<div class="turns">
            ${asked.map((turn) => html`<${Turn} key=${turn.key} turn=${turn} last=${turn === asked.at(-1)} context=${contextOf(turn)} />`)}
          </div>`
        : html`<${Welcome} field=${field} />`}
      <div class="composer-place">
        <${Composer} field=${field} model=${served} openSettings=${() => setOpen(true)} onAsk=${follow} />
      </div>
    </main>
    ${open && html`<${SettingsDrawer} close=${() => setOpen(false)} />`}
    <${DropOverlay} zones=${ZONES} onFiles=${attach} />`;
}

function contextOf(turn) {
  return generators.value.find(({ id }) => id === turn.model)?.context;
}

// The page follows the growing answer until somebody scrolls up, and again from its end on.
function useFollowing(asked) {
  const following = useRef(true);
  const placed = useRef(0);
  const page = document.documentElement;
  // Looked at before the page grows: among quick words, the event of a scroll comes too late.
  if (page.scrollTop < placed.current - 1) following.current = false;
  if (page.scrollHeight - page.clientHeight - page.scrollTop < 4) following.current = true;
  useLayoutEffect(() => {
    if (!following.current || !asked.length) return;
    page.scrollTo({ top: page.scrollHeight, behavior: "instant" });
    placed.current = page.scrollTop;
  }, [asked]);
  return () => (following.current = true);
}

function Welcome({ field }) {
  const { text, pictures } = draft.value;
  const begin = (example) => {
    write(example);
    requestAnimationFrame(() => {
      const at = example.indexOf(BLANK);
      field.current.focus();
      field.current.setSelectionRange(at < 0 ? example.length : at, at < 0 ? example.length : at + BLANK.length);
    });
  };
  return html`<div class="welcome">
    ${pictures.length > 0
      ? html`<${Attached} large />`
      : html`<button type="button" class="welcome-drop" onClick=${() => chooseFiles({ onChoose: attach })}>
      <span class="notice-icon"><${Icon} name="picture" /></span>
      <strong>Choose a picture</strong>
      <span><span class="with-pointer">or drop or paste one anywhere on this page. </span>It goes to this server, which keeps no copy.</span>
    </button>`}
    <ul class="examples" aria-label="Example questions">
      ${EXAMPLES.map((example) => html`<li key=${example}><button type="button" class="chip add" aria-pressed=${String(text === example)} onClick=${() => begin(example)}>${example}</button></li>`)}
    </ul>
  </div>`;
}

function NoGenerator({ error }) {
  const { code, message } = error;
  if (code !== NONE) {
    return html`<${Notice} logo title=${code === "not_ready" ? "The model is on its way" : "The model is not there"} role="status">
      <p>${message}</p>
      <p class="hint">This page goes on by itself.</p>
    <//>`;
  }
  return html`<${Notice} icon="alert" title="Nothing here answers questions yet" role="status">
    <p>This server was started without a model that answers. This page goes on by itself once there is one.</p>
    <p class="hint">Start the server with a model:<code>chiasm serve --generator default-vlm</code></p>
  <//>`;
}
