// Where a question is written: words, pictures, and the button that asks or stops.

import { settingsInWords } from "../chat-settings.js";
import { chooseFiles } from "../choose-files.js";
import { ask, busy, stop, turns } from "../conversation.js";
import { attach, detach, draft, take, write } from "../draft.js";
import { html, useEffect, useLayoutEffect, useRef } from "../preact.js";
import { Attached } from "./attached.js";
import { Icon } from "./icons.js";

const TOUCH = matchMedia("(pointer: coarse)");

export function Composer({ field, model, openSettings, onAsk }) {
  const { text, pictures } = draft.value;
  const asking = busy.value;
  const ready = text.trim() !== "" && !asking;

  useEffect(() => {
    if (!TOUCH.matches) field.current.focus();
  }, []);
  useFocusReturn(field, asking);
  usePastedPictures();

  const submit = (event) => {
    event?.preventDefault();
    if (!ready) return;
    ask(take());
    onAsk();
    // A keyboard on glass covers half of the answer.
    if (TOUCH.matches) field.current.blur();
    else field.current.focus();
  };
  const onKeyDown = (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) submit(event);
    if (event.key === "Escape" && asking) stop();
    if (event.key === "Backspace" && !event.repeat && !text && pictures.length) detach(pictures.at(-1));
  };

  return html`<form class="composer" onSubmit=${submit} aria-label="Ask">
    ${turns.value.length > 0 && html`<${Attached} />`}
    <textarea
      ref=${field}
      rows=${text.split("\n").length}
      aria-label="Your question"
      placeholder=${placeholder(pictures)}
      enterkeyhint="send"
      value=${text}
      onInput=${(event) => write(event.target.value)}
      onKeyDown=${onKeyDown}
    ></textarea>
    <div class="composer-row">
      <button type="button" class="button quiet round" aria-label="Add pictures" title="Add pictures" onClick=${() => chooseFiles({ onChoose: attach })}>
        <${Icon} name="picture" />
      </button>
      <button type="button" class="button quiet settings-button" aria-haspopup="dialog" aria-label=${`Settings: ${model?.id}, ${settingsInWords()}`} onClick=${openSettings}>
        <${Icon} name="sliders" /><span><strong>${model?.id}</strong><span class="wide-only"> · ${settingsInWords()}</span></span>
      </button>
      ${asking
        ? html`<button key="stop" type="button" class="button ask-button" onClick=${stop}><${Icon} name="stop" /><span>Stop</span></button>`
        : html`<button key="ask" type="submit" class="button primary ask-button" aria-disabled=${String(!ready)}><${Icon} name="up" /><span>Ask</span></button>`}
    </div>
  </form>`;
}

function placeholder(pictures) {
  if (pictures.length > 1) return "Ask about these pictures";
  if (pictures.length) return "Ask about this picture";
  return turns.value.length ? "Ask a follow-up" : "Ask about a picture";
}

// The button that stops goes away when there is nothing to stop; the focus must not go with it.
function useFocusReturn(field, asking) {
  const before = useRef(asking);
  useLayoutEffect(() => {
    const ended = before.current && !asking;
    before.current = asking;
    if (ended && !TOUCH.matches && document.activeElement === document.body) field.current.focus();
  }, [asking]);
}

function usePastedPictures() {
  useEffect(() => {
    const onPaste = (event) => {
      const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
      if (!files.length || event.target.closest("dialog[open]")) return;
      event.preventDefault();
      attach(files);
    };
    document.addEventListener("paste", onPaste);
    return () => document.removeEventListener("paste", onPaste);
  }, []);
}
