# %% [markdown]
# # Export, the page, the server
#
# **Goal:** give a trained model to other people and programs, and prove that it still gives the same answers there.
#
# **The figure it builds:** figure 1 of
# [Hidden Technical Debt in Machine Learning Systems](https://papers.nips.cc/paper/2015/hash/86df7dcfd896fcaf2674f757a2463eba-Abstract.html)
# (Sculley et al. 2015), in which the model is a small box among many. This chapter builds the boxes beside it: a file for
# another program, a server, and a page.
#
# So far, every answer came from Python and PyTorch. A phone, a web page or a program in another language has neither.

# %%
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from IPython.display import HTML
from PIL import Image, ImageOps

import vitrail

# %% [markdown]
# ## A model to ship
#
# We train a digits model as in [the chapter on training](digits.py), smaller and in a fifth of the epochs, with a larger
# learning rate as in [the fast recipe](cifar10.py). The folder of the run has `classifier.safetensors`: weights, class
# names, and how an image must be prepared, in one file.

# %%
folder = Path(tempfile.mkdtemp())
smaller = {"width": 64, "depth": 4, "heads": 2, "mlp_width": 256}
shorter = {"epochs": 12, "batch_size": 32, "lr": 6e-3, "muon_momentum": 0.9}
quiet = {"device": "cpu", "report": False, "pictures": False, "check": False, "workers": 0}
run = vitrail.train("digits", out=folder / "digits", **smaller, **shorter, **quiet)
accuracy = run.result["test"]["accuracy"]
print(f"{accuracy:.1%} of the hidden digits are read right")
assert accuracy > 0.85

# %% [markdown]
# This is the answer that all others must agree with: PyTorch's. Of ten example images, we take the one of which the model
# is least sure, because equal answers mean most there.

# %% mystnb={"image": {"alt": "The handwritten digit of which the model is least sure, eight by eight gray pixels"}}
examples = sorted(Path("../../examples/digits").glob("*.png"))
digit = min(examples, key=lambda path: run.classifier.predict(path).probability)
prediction = run.classifier.predict(digit)
print(digit.name, "is predicted as")
print(", ".join(f"{each.label}: {each.probability:.1%}" for each in prediction[:3]))
plt.figure(figsize=(1.5, 1.5))
plt.imshow(Image.open(digit), cmap="gray")
plt.axis("off")
plt.show()

# %% [markdown]
# ## A file for other programs
#
# [ONNX](https://onnx.ai) is a file format for models: a list of operations (matrix product, softmax, addition) with their
# weights. Many programs run it, in many languages, without PyTorch. `vitrail.export` writes the file. Before that, it
# runs the new program beside the classifier on real images, and refuses to write a file whose answers differ.

# %%
exported = vitrail.export(run.classifier, folder / "digits.onnx", format="onnx")
session = onnxruntime.InferenceSession(folder / "digits.onnx")
for each in [*session.get_inputs(), *session.get_outputs()]:
    print(f"{each.name:8} {each.type} {each.shape}")
metadata = session.get_modelmeta().custom_metadata_map
print("classes:", metadata["class_names"])
print("preparation:", *json.loads(metadata["preparation"])["words"], sep="\n- ")

# %% [markdown]
# The input consists of whole numbers from 0 to 255, as an image file has them. Normalization is inside the file, so it
# cannot be forgotten. The file also lists the steps before it. The output is logits; softmax makes probabilities of them.


# %%
def ask_onnx(pixels_BCHW):
    """Returns the probabilities of a batch, (B, Y), computed by ONNX Runtime."""
    (logits_BY,) = session.run(["logits"], {session.get_inputs()[0].name: pixels_BCHW})
    exponentials_BY = np.exp(logits_BY - logits_BY.max(axis=1, keepdims=True))
    return exponentials_BY / exponentials_BY.sum(axis=1, keepdims=True)


from_onnx_Y = ask_onnx(np.asarray(Image.open(digit))[None, None])[0]
print(f"ONNX Runtime says {run.classifier.classes[from_onnx_Y.argmax()]}, {from_onnx_Y.max():.1%}")

# %% [markdown]
# ## A server
#
# `vitrail serve` answers over the network. It collects requests that arrive at the same time into batches, and refuses
# early what it cannot answer in time. Here it runs beside this page, on a free port (`--port 0`) of the same machine.

# %%
command = [sys.executable, "-m", "vitrail", "serve", str(folder / "digits"), "--port", "0", "--json", "--no-page"]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
events = map(json.loads, server.stderr)  # a line for each event
address = next(event["url"] for event in events if event["event"] == "listening")
next(event for event in events if event["event"] == "ready")
print("the server is ready at", address)

# %% [markdown]
# A request is the bytes of an image file. On the command line it is
# `curl --data-binary @examples/digits/3.png localhost:8000/predict`; in Python:

# %%
request = urllib.request.Request(f"{address}predict?top=10", digit.read_bytes())
reply = json.load(urllib.request.urlopen(request))
print(json.dumps(reply, indent=1)[:400])

# %% [markdown]
# ## Three answers
#
# Now we compare the probabilities of all ten classes. Each program adds numbers in another order, so the last digits may
# differ; anything beyond that would be a mistake.

# %% mystnb={"image": {"alt": "Probabilities of the ten digits from PyTorch, ONNX Runtime and the server: the bars of the three are equal for each digit"}}
from_torch_Y = np.array([prediction.probabilities[name] for name in run.classifier.classes])
by_name = {each["label"]: each["probability"] for each in reply["predictions"][0]["top"]}
from_server_Y = np.array([by_name[name] for name in run.classifier.classes])
answers = {"PyTorch": from_torch_Y, "ONNX Runtime": from_onnx_Y, "server": from_server_Y}
figure, axes = plt.subplots(figsize=(7, 2.6))
for i, (name, probability_Y) in enumerate(answers.items()):
    axes.bar(np.arange(10) + 0.27 * (i - 1), probability_Y, width=0.25, label=name)
    print(
        f"{name:13} {probability_Y.argmax()}, largest difference from PyTorch {np.abs(probability_Y - from_torch_Y).max():.1e}"
    )
    assert np.abs(probability_Y - from_torch_Y).max() < 1e-4
axes.set(xticks=range(10), xlabel="digit", ylabel="probability")
axes.legend()
plt.show()

# %% [markdown]
# ## A page
#
# `--format web` writes one HTML file with the model in it. It runs in any browser, also on a phone and without a network:
# the images that a visitor chooses never leave the device. It was compared with PyTorch before it was written, too.

# %%
command = [sys.executable, "-m", "vitrail", "export", str(folder / "digits"), "--format", "web", "--title", "Digits"]
output = subprocess.run(
    [*command, "--out", str(folder / "digits.html"), "--json", "--quiet"], capture_output=True, text=True
)
written = json.loads(output.stdout)
print(
    f"{written['bytes'] / 1e6:.1f} MB; on {written['images']} images the same class for {written['agreement']:.0%}, "
    f"largest difference of a logit {written['max_difference']:.1e}"
)
assert written["agreement"] == 1

# %% [markdown]
# This is that page, with the model that was trained above. It starts when you scroll to it, and then computes on your
# device. Choose another digit, point at patches, or hide them.

# %% tags=["hide-input"]
page = json.dumps((folder / "digits.html").read_text(encoding="utf-8")).replace(
    "<", "\\u003c"
)  # a string of JavaScript
HTML(f"""<iframe id="live-page" title="The digits model, live" style="width: 100%; height: 60rem; border: 1px solid gray"></iframe>
<script>
new IntersectionObserver(([frame], observer) => {{
  if (!frame.isIntersecting) return;
  observer.disconnect();
  frame.target.src = URL.createObjectURL(new Blob([{page}], {{ type: "text/html" }}));
}}).observe(document.getElementById("live-page"));
</script>""")

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: a client
#
# Send an image to the server, at `address`, and return the digit and its probability.


# %%
def my_client(address, path):
    """Returns the class and its probability."""
    return "0", 1.0  # your code


def test_client(my_client):
    for path in examples:
        expected = run.classifier.predict(path)
        label, probability = my_client(address, path)
        assert label == expected.label, f"{path.name}: the server says {expected.label}, not {label}"
        assert abs(probability - expected.probability) < 1e-4, (
            f"{path.name}: the probability is {expected.probability:.3f}"
        )
    print("my_client passes its test")


# %% tags=["raises-exception"]
test_client(my_client)


# %% tags=["solution", "hide-cell"]
def solved_client(address, path):
    request = urllib.request.Request(f"{address}predict", Path(path).read_bytes())
    best = json.load(urllib.request.urlopen(request))["predictions"][0]["top"][0]
    return best["label"], best["probability"]


test_client(solved_client)

# %% [markdown]
# ### Exercise 2: ink on paper
#
# Another program sends a scan: black ink on white paper, in color, 40 x 40 pixels. The model has learned white strokes on
# black, 8 x 8 pixels, one channel. The ONNX file cannot know this. Write the preparation.


# %%
def prepare(scan):
    """Returns a scan, a PIL image, as uint8 (1, 1, 8, 8)."""
    return np.asarray(scan.resize((8, 8)).convert("L"))[None, None]  # your code; it forgets something


def test_prepare(prepare):
    right = 0
    for path in examples:
        strokes = Image.open(path).convert("L")
        scan = ImageOps.invert(strokes).resize((40, 40), Image.Resampling.NEAREST).convert("RGB")
        pixels_BCHW = prepare(scan)
        assert pixels_BCHW.shape == (1, 1, 8, 8) and pixels_BCHW.dtype == np.uint8, "the shape or the type is wrong"
        right += run.classifier.classes[ask_onnx(pixels_BCHW)[0].argmax()] == run.classifier.predict(strokes).label
    assert right == 10, f"{right} of 10 scans are read like the digits they were made of"
    print("prepare passes its test")


# %% tags=["raises-exception"]
test_prepare(prepare)


# %% tags=["solution", "hide-cell"]
def solved_prepare(scan):
    strokes = ImageOps.invert(scan.convert("L"))  # white on black, as in training
    return np.asarray(strokes.resize((8, 8), Image.Resampling.BOX))[None, None]


test_prepare(solved_prepare)

# %%
server.terminate()
server.wait()
server.stderr.close()

# %% [markdown]
# ## What to read next
#
# [Export](../howto/export.md) lists all formats, among them folders for timm and transformers and a folder for Triton.
# [Serving](../howto/serve.md) has the options of the server. [Unlike images](../unlike.md) says how a model notices
# images that it was not made for, such as ink on paper.
