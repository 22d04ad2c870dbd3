"""PyPI's what-the-face-classification 0.0.27 on FER2013's PublicTest.

Trained on: FER2013 and CK+; the package doesn't say which parts of them.

The package's network, weights, transform (48x48 grey, 0 to 1) and classes, as its predict() has them. Its
face detection is left out, since the pictures are faces, and with it the answer "no face detected", which
it gives where it is unsure and has found no face. OpenCV has to be one with CascadeClassifier, before 5, and
setuptools one with pkg_resources, before 81.

    python3.11 -m venv venv-torch
    venv-torch/bin/pip install torch==2.14.1 torchvision==0.29.1 opencv-python-headless==4.14.0.94 \
        "setuptools<81" pillow==13.0.0
    venv-torch/bin/pip install --no-deps what-the-face-classification==0.0.27
    venv-torch/bin/python tests/peers/run_what_the_face.py [data] [predictions]
"""
import torch
from PIL import Image
from what_the_face_classification.inference import Image_classifier

import parts

data, out = parts.arguments(__doc__)
classifier = Image_classifier()
classifier.net.eval()

rows = []
with torch.inference_mode():
    for image, pixels in parts.fer2013(data):
        face = classifier.transform(Image.frombytes("L", (parts.SIDE, parts.SIDE), pixels))
        scores = classifier.net(face[None])[0]
        rows.append({"image": image, "emotion": classifier.classes[int(scores.argmax())]})
parts.write(out, "what-the-face-classification", "fer2013", rows)
