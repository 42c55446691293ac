// How an item is put into words.

// Its text, or the name of the file it came from.
export function nameOf(item) {
  return item.text || fileOf(item);
}

export function fileOf({ source, id }) {
  return source?.split(/[\\/]/).at(-1) || id;
}

export function dateOf({ added_at }) {
  return new Date(added_at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function sizeOf({ width, height }) {
  return `${width.toLocaleString()} × ${height.toLocaleString()} pixels`;
}
