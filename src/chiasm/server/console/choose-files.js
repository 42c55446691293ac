// Asks the browser for files. `folder` asks for everything below a folder instead.

export function chooseFiles({ onChoose, folder = false, multiple = true }) {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = multiple;
  if (folder) input.webkitdirectory = true;
  else input.accept = "image/*";
  input.addEventListener("change", () => {
    const files = [...input.files].filter((file) => !folder || looksLikePicture(file));
    if (files.length) onChoose(files);
  });
  input.click();
}

// A folder holds other things too; those that never claim to be pictures are left out quietly.
// A file that was picked or dropped by itself is always tried, so that it is answered for.
export function looksLikePicture(file) {
  return file.type.startsWith("image/") && !file.name.startsWith(".");
}
