"""PyPI's facial-emotion-recognition 0.3.4 on FER2013's PublicTest.

Trained on: the package doesn't say; its one reference is FER2013's paper. Its checkpoint notes an accuracy,
but not on what.

The package's network, weights, transform (48x48 grey, -1 to 1) and classes, as its _predict() has them. Its
own class is not used, and so the package not imported: that wants facenet_pytorch's MTCNN, a face detector,
which these faces don't need, and reads its checkpoint only where there is a GPU.

    python3.11 -m venv venv-torch
    venv-torch/bin/pip install torch==2.14.1 torchvision==0.29.1 pillow==13.0.0
    venv-torch/bin/pip install --no-deps facial-emotion-recognition==0.3.4
    venv-torch/bin/python tests/peers/run_facial_emotion_recognition.py [data] [predictions]
"""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms

import parts

data, out = parts.arguments(__doc__)
package = Path(importlib.util.find_spec("facial_emotion_recognition").origin).parent
sys.path.append(str(package))
from networks import NetworkV2  # noqa: E402

network = NetworkV2(in_c=1, nl=32, out_f=7)
checkpoint = torch.load(package / "model/model.pkl", map_location="cpu")
network.load_state_dict(checkpoint["network"])
network.eval()
transform = transforms.Compose([transforms.ToPILImage(), transforms.Resize((48, 48)), transforms.ToTensor(),
                                transforms.Normalize(mean=[0.5], std=[0.5])])

rows = []
with torch.inference_mode():
    for image, pixels in parts.fer2013(data):
        face = transform(np.frombuffer(pixels, np.uint8).reshape(parts.SIDE, parts.SIDE))
        # sigmoids, of which several may be 1: the first counts, as in the package, which exponentiates too
        scores = torch.exp(network(face[None]))[0].numpy()
        rows.append({"image": image, "emotion": parts.EMOTIONS[scores.argmax()]})
parts.write(out, "facial-emotion-recognition", "fer2013", rows)
