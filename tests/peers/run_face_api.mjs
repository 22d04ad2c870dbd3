// npm's @vladmandic/face-api 1.7.15 on FER2013's PublicTest and UTKFace's and FairFace's valid parts.
//
// Trained on: for age and gender, four fifths each of UTKFace, FG-NET, ChaLearn, Wiki, IMDB, CACD, MegaAge
// and MegaAge-Asian, so presumably on most of UTKFace's valid part; for emotion, public sets that aren't
// named and pictures from the web. The package itself doesn't say; face-api.js does, whose networks it has.
//
// The package's networks get the whole picture as a face, and resize it to 112x112. Its build for Node wants
// TensorFlow's C library, so its build for WebAssembly is used. Images are decoded by sharp.
//
//     npm install --ignore-scripts --prefix tests/peers        (Node 20; no package here needs its script)
//     node tests/peers/run_face_api.mjs [data] [predictions]
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { run } from './parts.mjs';

const require = createRequire(import.meta.url);
const { nets } = require('@vladmandic/face-api/dist/face-api.node-wasm.js');
const models = `${dirname(require.resolve('@vladmandic/face-api/package.json'))}/model`;
await nets.ageGenderNet.loadFromDisk(models);
await nets.faceExpressionNet.loadFromDisk(models);

const emotions = { disgusted: 'disgust', fearful: 'fear', surprised: 'surprise' }; // the others as here

await run('face-api', async (face, set) => {
  if (set === 'fer2013') {
    const [{ expression }] = (await nets.faceExpressionNet.predictExpressions(face)).asSortedArray();
    return { emotion: emotions[expression] ?? expression };
  }
  const { age, gender } = await nets.ageGenderNet.predictAgeAndGender(face);
  return { age: age.toFixed(3), gender };
});
