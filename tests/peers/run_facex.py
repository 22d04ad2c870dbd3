"""PyPI's facex 1.1.0 on FER2013's PublicTest.

Trained on: the package doesn't say.

The package's detect_emotion(), which its predict() gives the grey face: 200x200, 0 to 1. Face detection is
left out, since the pictures are faces. The package asks for OpenCV with a display, of which it needs no
more than the headless one has; it has to be one with CascadeClassifier, before 5.

    python3.11 -m venv venv-tf
    venv-tf/bin/pip install tensorflow-cpu==2.21.0 opencv-contrib-python-headless==4.14.0.94 \
        scikit-image==0.26.0
    venv-tf/bin/pip install --no-deps facex==1.1.0
    venv-tf/bin/python tests/peers/run_facex.py [data] [predictions]
"""
from pathlib import Path

import facex
import numpy as np

import parts

EMOTIONS = {"anger": "angry", "sadness": "sad", "surprised": "surprise"}    # the others as here

data, out = parts.arguments(__doc__)
classifier = facex.EmotionClassifier(str(Path(facex.__file__).parent / "assets/model_optimized.tflite"))

rows = []
for image, pixels in parts.fer2013(data):
    scores = classifier.detect_emotion(np.frombuffer(pixels, np.uint8).reshape(parts.SIDE, parts.SIDE))
    emotion = max(scores, key=scores.get)
    rows.append({"image": image, "emotion": EMOTIONS.get(emotion, emotion)})
parts.write(out, "facex", "fer2013", rows)
