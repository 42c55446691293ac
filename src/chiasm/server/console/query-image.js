// The picture of a question. It never goes into the address; a short key does, and the picture
// stays in this tab (memory and session storage), so that back, forward and reload find it.

const LARGE = 512 * 1024; // bytes; what is smaller is sent as it is
const SHORTER_SIDE = 512; // pixels; more than any embedder looks at

const pictures = new Map();

export async function remember(file) {
  const picture = { name: file.name || "pasted picture", url: await dataUrl(file) };
  const key = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
  pictures.set(key, picture);
  try {
    sessionStorage.setItem(`chiasm.image.${key}`, JSON.stringify(picture));
  } catch {
    // Full or forbidden: the picture lives as long as the page.
  }
  return key;
}

export function recall(key) {
  if (!pictures.has(key)) {
    try {
      const stored = sessionStorage.getItem(`chiasm.image.${key}`);
      if (stored) pictures.set(key, JSON.parse(stored));
    } catch {
      return null;
    }
  }
  return pictures.get(key) ?? null;
}

// A large photograph is made smaller here: sending twelve megapixels to be looked at through
// 224 pixels is a wait for nothing. What the browser cannot open goes as it is; the server
// reads more formats, and says clearly what it cannot read.
async function dataUrl(file) {
  if (file.size > LARGE) {
    try {
      return await smaller(file);
    } catch {
      // not a format this browser knows
    }
  }
  return read(file);
}

async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SHORTER_SIDE / Math.min(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(bitmap.width * scale)),
    Math.max(1, Math.round(bitmap.height * scale)),
  );
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // under transparency, as the server does
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return read(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 }));
}

function read(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
