# %% [markdown]
# # Calibration and abstaining
#
# **Goal:** learn whether a probability of 90% means right in 9 of 10 cases, and let the model say "I do not know".
#
# **The figure it builds:** the reliability diagram, figure 1 of
# [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599) (Guo et al. 2017).
#
# Softmax gives every answer a probability. Nothing so far has checked that it is one. Someone who acts on the answer, a
# doctor or a sorting machine, needs to know.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import vitrail
from vitrail.evaluation.calibration import calibrate, fit_temperature
from vitrail.evaluation.calibration_error import measure_calibration_error
from vitrail.evaluation.outcome import Outcome

# %% [markdown]
# ## A model to question
#
# We train a small ViT on few digits, 500 images, so that it makes mistakes worth talking about. The loop is that of
# [the chapter on training](digits.py). Then 600 images are for *validation*, where we may make choices, and the rest for
# the *test*, which is only looked at.

# %%
digits = load_digits()
images_BCHW = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels_B = torch.tensor(digits.target)
order = torch.randperm(len(images_BCHW), generator=torch.Generator().manual_seed(0))
train, validation, test = order[:500], order[500:1100], order[1100:]
torch.manual_seed(0)
config = vitrail.ViTConfig(
    width=48,
    depth=3,
    heads=3,
    mlp_width=96,
    patch=2,
    image_size=8,
    channels=1,
    classes=10,
    prefix_tokens=0,
    pool="mean",
)
vit = vitrail.ViT(config)
optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=60 * 7)
for _ in range(60):
    for chosen in train[torch.randperm(500)][:448].split(64):
        loss = cross_entropy(vit(images_BCHW[chosen]), labels_B[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
vit.eval()

# %% [markdown]
# vitrail keeps the logits and labels of a set of images in an `Outcome`. Everything about a model's answers is computed
# from it.


# %%
def collect(chosen):
    """Returns the logits and true labels of images."""
    with torch.no_grad():
        logits_BY = vit(images_BCHW[chosen]).double().numpy()
    return Outcome([str(int(i)) for i in chosen], labels_B[chosen].numpy(), logits_BY, tuple("0123456789"))


outcome = collect(test)
print(f"right: {outcome.correct.mean():.1%}, mean confidence: {outcome.confidence.mean():.1%}")

# %% [markdown]
# *Confidence* is the probability of the predicted class. If confidence is higher than the fraction of right answers, the
# model is *overconfident*.
#
# ## The reliability diagram
#
# Sort the answers into bins by their confidence. In each bin, compare the mean confidence with the fraction of right
# answers. On the diagonal both are equal.


# %% mystnb={"image": {"alt": "Reliability diagram: bars of accuracy by confidence are below the diagonal for most bins"}}
def draw(outcome, axes, title):
    edges = np.linspace(0, 1, 11)
    bins = np.digitize(outcome.confidence, edges[1:-1])
    for b in range(10):
        if (bins == b).any():
            axes.bar(edges[b] + 0.05, outcome.correct[bins == b].mean(), width=0.09, color="tab:blue")
    axes.plot([0, 1], [0, 1], color="black")
    axes.set(title=title, xlabel="confidence", ylabel="right answers", xlim=(0, 1), ylim=(0, 1))


figure, axes = plt.subplots(figsize=(3.5, 3.5))
draw(outcome, axes, "before")
plt.show()

# %% [markdown]
# The mean distance from the diagonal, weighted by the number of answers in the bins, is the *expected calibration error*
# (ECE). Few answers in a bin make it look too large; vitrail therefore also gives a corrected value and an interval.

# %%
error = measure_calibration_error(outcome)
print(
    f"ECE {error.ece:.3f}, corrected {error.corrected:.3f}, between {error.interval[0]:.3f} and {error.interval[1]:.3f}"
)

# %% [markdown]
# ## Temperature
#
# The cure is surprisingly simple: divide all logits by one number, the *temperature*. Above 1 it makes all
# probabilities less extreme. The order of the classes stays, so no answer changes. The number is chosen on the validation
# images: it is the one for which the right answers are most probable.

# %%
print(inspect.getsource(fit_temperature))
temperature = fit_temperature(collect(validation))
cooler = outcome.with_temperature(temperature)
print(f"temperature {temperature:.2f}")
for name, each in (("before", outcome), ("after", cooler)):
    print(f"{name:6} confidence {each.confidence.mean():.1%}, ECE {measure_calibration_error(each).corrected:.3f}")
assert measure_calibration_error(cooler).corrected < measure_calibration_error(outcome).corrected

# %% mystnb={"image": {"alt": "Two reliability diagrams, before and after the temperature: afterwards the bars are close to the diagonal"}}
figure, panels = plt.subplots(1, 2, figsize=(7, 3.5))
draw(outcome, panels[0], "before")
draw(cooler, panels[1], f"after, temperature {temperature:.2f}")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## "I do not know"
#
# Now a confidence means something, so a model can keep silent below a *threshold*. *Coverage* is the fraction of images
# that it answers. The fewer it answers, the fewer mistakes it makes.

# %% mystnb={"image": {"alt": "Accuracy of the answered images by coverage: close to 100 percent for the most confident half, lower when all images are answered"}}
ranked = cooler.correct[np.argsort(-cooler.confidence, kind="stable")]
coverage = np.arange(1, len(ranked) + 1) / len(ranked)
accuracy = ranked.cumsum() / np.arange(1, len(ranked) + 1)
plt.figure(figsize=(6, 3))
plt.plot(coverage[20:], accuracy[20:])
plt.xlabel("coverage")
plt.ylabel("right among the answered")
plt.show()
half = accuracy[len(accuracy) // 2]
print(f"all answered: {accuracy[-1]:.1%} right; the more confident half: {half:.1%}")
assert half > accuracy[-1]

# %% [markdown]
# A threshold that looks good on the validation images may be luck. `calibrate` returns thresholds with a guarantee that
# counts this in: with a confidence of 95%, new answers above the threshold are right at least as often as stated.

# %%
for row in calibrate(collect(validation)).thresholds:
    answered = cooler.confidence >= row["threshold"]
    print({key: round(value, 3) for key, value in row.items() if isinstance(value, float)})
    print(f"  on the test images: {answered.mean():.0%} answered, {cooler.correct[answered].mean():.1%} right")

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: the calibration error by hand
#
# Use 15 bins of equal width. In each: the absolute difference of mean confidence and fraction of right answers, times
# the fraction of all answers that are in the bin.


# %%
def my_ece(confidence, correct, bins=15):
    """Returns the expected calibration error."""
    return abs(confidence.mean() - correct.mean())  # your code; this is one single bin


def test_ece(my_ece):
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 1000)
    correct = generator.uniform(size=1000) < np.where(confidence > 0.55, confidence - 0.2, confidence + 0.2)
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(15)) / 1000
    result = my_ece(confidence, correct)
    assert abs(result - expected) < 1e-9, f"the error is {expected:.4f}, not {result:.4f}"
    own = my_ece(outcome.confidence, outcome.correct)
    assert abs(own - error.ece) < 1e-6, f"vitrail's ECE is {error.ece:.4f}, yours {own:.4f}"
    print("my_ece passes its test")


# %% tags=["raises-exception"]
test_ece(my_ece)


# %% tags=["solution", "hide-cell"]
def solved_ece(confidence, correct, bins=15):
    total = 0.0
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    for b in range(bins):
        chosen = which == b
        if chosen.any():
            total += abs(confidence[chosen].mean() - correct[chosen].mean()) * chosen.mean()
    return total


test_ece(solved_ece)

# %% [markdown]
# ### Exercise 2: does a temperature change answers?
#
# Find a positive temperature for which the mean confidence on the test images equals the fraction of right answers, up
# to half a percent. Why must it not be chosen on the test images in real work?


# %%
def find_temperature(outcome):
    """Returns a temperature."""
    return 1.0  # your code


def test_temperature(find_temperature):
    scaled = outcome.with_temperature(find_temperature(outcome))
    gap = scaled.confidence.mean() - scaled.correct.mean()
    assert (scaled.correct == outcome.correct).all(), "an answer has changed"
    assert abs(gap) < 0.005, f"confidence is {gap:+.1%} away from the fraction of right answers"
    print("find_temperature passes its test")


# %% tags=["raises-exception"]
test_temperature(find_temperature)


# %% tags=["solution", "hide-cell"]
def solved_temperature(outcome):
    low, high = 0.05, 20.0  # confidence falls with the temperature, so the interval can be halved again and again
    for _ in range(50):
        middle = (low * high) ** 0.5
        too_sure = outcome.with_temperature(middle).confidence.mean() > outcome.correct.mean()
        low, high = (middle, high) if too_sure else (low, middle)
    return middle


test_temperature(solved_temperature)

# %% [markdown]
# A number that is fitted to the test images says nothing about other images: it would look right even for a model whose
# confidence is noise.
#
# ## What to read next
#
# [Intervals and verdicts](../statistics.md): how vitrail decides whether such numbers mean anything. `vitrail evaluate
# MODEL DATA --report` draws these diagrams for your model.
