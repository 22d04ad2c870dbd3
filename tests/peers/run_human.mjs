// npm's @vladmandic/human 3.3.6 on FER2013's PublicTest and UTKFace's and FairFace's valid parts.
//
// Trained on: the package only names where its networks come from. HSE FaceRes, for age and gender, learned
// to tell VGGFace2's people apart, then age and gender, as it seems from IMDB-WIKI: its training script
// names such a folder. Oarriaga, for emotion, is of Octavio Arriaga's face_classification, whose training
// takes the first four fifths of fer2013.csv, which are the Training rows, and keeps the epoch with the
// least loss on the rest, PublicTest among them.
//
// The package's networks faceres and emotion, with the steps of its src/face/facemeshutil.ts (cutAndResize),
// src/face/faceres.ts and src/gear/emotion.ts done again here: its detect() takes only pictures in which its
// own detector finds a face. The whole picture is taken as the face's box, cut to 256x256 and 0 to 1 as for
// its mesh, then resized for each network. WebAssembly is used and images are decoded by sharp.
//
//     npm install --ignore-scripts --prefix tests/peers        (Node 20; no package here needs its script)
//     node tests/peers/run_human.mjs [data] [predictions]
import { readFileSync } from 'node:fs';
import { run, tf } from './parts.mjs';

const models = new URL('../models/', import.meta.resolve('@vladmandic/human'));
const MESH = 256; // the side of its mesh's input
const EMOTIONS = ['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral'];

function load(name) {
  const { modelTopology, weightsManifest } = JSON.parse(readFileSync(new URL(`${name}.json`, models)));
  const weightData = new Uint8Array(readFileSync(new URL(`${name}.bin`, models))).buffer;
  return tf.loadGraphModel(tf.io.fromMemory({
    modelTopology, weightSpecs: weightsManifest[0].weights, weightData,
  }));
}

const faceres = await load('faceres');
const emotion = await load('emotion');

function predictEmotion(face) {
  const grey = tf.image.resizeBilinear(face, [64, 64], false).mul([0.2989, 0.5870, 0.1140]).sum(3, true);
  return { emotion: EMOTIONS[emotion.execute(grey.sub(0.5).mul(2)).argMax(1).dataSync()[0]] };
}

function predictAgeAndGender(face) {
  const outputs = faceres.execute(tf.image.resizeBilinear(face, [224, 224], false).mul(255));
  const male = outputs.find((output) => output.shape[1] === 1).dataSync()[0];
  const ages = outputs.find((output) => output.shape[1] === 100).dataSync();
  // the package's arithmetic; 0 and 99 lack a neighbour
  const i = ages.indexOf(Math.max(...ages));
  const [before, after] = [ages[i - 1] ?? 0, ages[i + 1] ?? 0];
  const age = Math.round(before > after ? 10 * i - 100 * before : 10 * i + 100 * after) / 10;
  // the package names no gender within 0.05 of 0.5; here every face has one
  return { age, gender: male <= 0.5 ? 'female' : 'male' };
}

await run('human', (pixels, set) => tf.tidy(() => {
  const image = pixels.toFloat().expandDims(0);
  const face = tf.image.cropAndResize(image, [[0, 0, 1, 1]], [0], [MESH, MESH]).div(255);
  return set === 'fer2013' ? predictEmotion(face) : predictAgeAndGender(face);
}));
