// What run_face_api.mjs and run_human.mjs share. parts.py tells which images they predict, so Python has to
// be there, as python3.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import sharp from 'sharp';

const require = createRequire(import.meta.url);
export const tf = require('@tensorflow/tfjs');
const wasm = require('@tensorflow/tfjs-backend-wasm');
wasm.setWasmPaths(`${dirname(require.resolve('@tensorflow/tfjs-backend-wasm'))}/`);
wasm.setThreadsCount(1); // with more, figures might depend on the machine
await tf.setBackend('wasm');
await tf.ready();

const SIDE = 48; // of FER2013's pictures
const [data = 'data', out = 'predictions'] = process.argv.slice(2);

/** An image's pixels, height x width x 3 in RGB, 0 to 255. */
async function decode(set, source) {
  const image = set === 'fer2013'
    ? sharp(Buffer.from(source, 'base64'), { raw: { width: SIDE, height: SIDE, channels: 1 } })
    : sharp(source);
  const { data: bytes, info } = await image.toColourspace('srgb').removeAlpha().raw()
    .toBuffer({ resolveWithObject: true });
  return tf.tensor3d(bytes, [info.height, info.width, info.channels], 'int32');
}

/** Write {peer}-{set}.csv for every set; predict(pixels, set) gives a row's columns but the image. */
export async function run(peer, predict) {
  const script = fileURLToPath(new URL('parts.py', import.meta.url));
  const parts = JSON.parse(execFileSync('python3', [script, data], { maxBuffer: 2 ** 30 }));
  mkdirSync(out, { recursive: true });
  for (const [set, images] of Object.entries(parts)) {
    const rows = [];
    for (const [image, source] of images) {
      const pixels = await decode(set, source);
      rows.push({ image, ...await predict(pixels, set) });
      pixels.dispose();
    }
    const table = [Object.keys(rows[0]), ...rows.map(Object.values)];
    writeFileSync(`${out}/${peer}-${set}.csv`, table.map((cells) => `${cells.join(',')}\n`).join(''));
    console.log(`${out}/${peer}-${set}.csv: ${rows.length} images`);
  }
}
