// The question that is being written: its words and its pictures. It outlives a look at another page.

import { signal } from "./preact.js";

// pictures: { key, name, file, url }, `url` for showing it here.
export const draft = signal({ text: "", pictures: [] });

let sequence = 0;

export function write(text) {
  draft.value = { ...draft.value, text };
}

export function attach(files) {
  const pictures = files.map((file) => ({
    key: (sequence += 1),
    name: file.name || "pasted picture",
    file,
    url: URL.createObjectURL(file),
  }));
  draft.value = { ...draft.value, pictures: [...draft.value.pictures, ...pictures] };
}

export function detach(picture) {
  URL.revokeObjectURL(picture.url);
  const pictures = draft.value.pictures.filter(({ key }) => key !== picture.key);
  draft.value = { ...draft.value, pictures };
}

// Its words and pictures, which are then somebody else's.
export function take() {
  const { text, pictures } = draft.value;
  draft.value = { text: "", pictures: [] };
  return { question: text.trim(), pictures };
}

// A question that was asked, to be written anew, before what has been written since.
export function putBack({ question, pictures }) {
  const { text, pictures: others } = draft.value;
  draft.value = { text: text || question, pictures: [...pictures, ...others] };
}

// As the API takes it. Read once, however often the conversation is sent.
export function dataUrl(picture) {
  picture.dataUrl ??= new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${picture.name} could not be read from your disk.`));
    reader.readAsDataURL(picture.file);
  });
  return picture.dataUrl;
}
