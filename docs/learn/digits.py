# %% [markdown]
# # Training on digits
#
# **Goal:** train the model from random numbers until it reads handwritten digits.
#
# **The figure it builds:** the learning curve, and the table of hyperparameters of
# [the ViT paper](https://arxiv.org/abs/2010.11929) (its table 3) in small.
#
# [The chapter on the whole model](model.py) ended with a model that computes the right thing with random weights. Its
# answers are guesses. *Training* changes the weights in small steps, so that the answers for known images get better.

# %%
import inspect
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import vitrail
from vitrail.training.schedules import lr_factor

# %% [markdown]
# ## The data
#
# scikit-learn brings 1,797 images of handwritten digits along, 8 x 8 pixels in gray. We hide every fifth image. A model
# that has only learned the training images by heart would fail on the hidden ones, so only they count.

# %% mystnb={"image": {"alt": "Ten handwritten digits, eight by eight gray pixels each"}}
digits = load_digits()
pixels_BCHW = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # one channel; 0 is black, 1 is white
labels_B = torch.tensor(digits.target)
images_BCHW = (pixels_BCHW - pixels_BCHW.mean()) / pixels_BCHW.std()  # mean 0, deviation 1: good numbers to start with
order = torch.randperm(len(images_BCHW), generator=torch.Generator().manual_seed(0))
test, train = order[: len(order) // 5], order[len(order) // 5 :]
print(f"{len(train)} images to train on, {len(test)} hidden")
figure, panels = plt.subplots(1, 10, figsize=(9, 1.2))
for label, axes in enumerate(panels):
    axes.imshow(pixels_BCHW[labels_B == label][0, 0], cmap="gray")
    axes.axis("off")
plt.show()

# %% [markdown]
# ## The loss
#
# Training needs one number that says how wrong the model is: the *loss*. *Cross-entropy* is the negative logarithm of
# the probability that the model gives to the right class. It is 0 for complete certainty in the right class. A model that
# guesses among ten classes has a loss of `-log(1/10)`, about 2.3. Every training should start near that number.

# %%
torch.manual_seed(0)
config = vitrail.ViTConfig(
    width=64,
    depth=4,
    heads=4,
    mlp_width=128,
    patch=2,
    image_size=8,
    channels=1,
    classes=10,
    prefix_tokens=0,
    pool="mean",
)
vit = vitrail.ViT(config)
print(f"{sum(parameter.numel() for parameter in vit.parameters()):,} parameters")
loss = cross_entropy(vit(images_BCHW[train[:64]]), labels_B[train[:64]])
print(f"loss before training: {loss.item():.2f}")
assert 2 < loss.item() < 2.7

# %% [markdown]
# ## A step
#
# `loss.backward()` computes the *gradient*: for each weight, how the loss changes if the weight grows a little. An
# *optimizer* moves each weight a little in the direction in which the loss falls. AdamW is the usual one. It keeps a mean
# of past gradients, and its *weight decay* pulls all weights slightly toward zero.
#
# A step uses a *batch*, here 64 images. An *epoch* is one pass over all training images. The *learning rate* is the size
# of a step. It rises during the first steps (the *warmup*), when gradients are still wild, and then falls to zero.
# vitrail's schedules are functions of the step:

# %%
print(inspect.getsource(lr_factor))


# %%
def count_right(vit, chosen):
    """Returns the fraction of right answers."""
    vit.eval()
    with torch.no_grad():
        right = vit(images_BCHW[chosen]).argmax(dim=1) == labels_B[chosen]
    vit.train()
    return right.double().mean().item()


def train_epochs(vit, epochs, lr, batch=64):
    """Trains a ViT; returns the loss of every step."""
    optimizer = torch.optim.AdamW(vit.parameters(), lr=lr, weight_decay=0.05)
    steps, losses = epochs * (len(train) // batch), []
    for _ in range(epochs):
        shuffled = train[torch.randperm(len(train))]
        for chosen in shuffled[: len(train) // batch * batch].split(batch):
            step = len(losses)
            optimizer.param_groups[0]["lr"] = lr * min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
            loss = cross_entropy(vit(images_BCHW[chosen]), labels_B[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


losses = train_epochs(vit, epochs=25, lr=2e-3)
accuracy = count_right(vit, test)
print(
    f"loss at the end {losses[-1]:.2f}, right on the training images {count_right(vit, train):.1%}, hidden {accuracy:.1%}"
)
assert accuracy > 0.8

# %% mystnb={"image": {"alt": "The loss of each step: it starts at 2.3 and falls, fast at first"}}
plt.figure(figsize=(6, 3))
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# Twenty-five epochs of a loop of 15 lines. The hidden images are read worse than the training images: the model has learned
# some of them by heart. This is called *overfitting*, and it is the problem of a ViT with few images. A ViT starts
# without any idea of an image: [the chapter on positions](positions.py) showed that it does not even know which patches
# are neighbors. It must learn this from the data.
#
# ## What the recipe adds
#
# `vitrail train digits` trains with the recipe `small`: a slightly larger model, 60 epochs, images that are shifted
# randomly, another optimizer (Muon) for the matrices, and a mean of the weights over the last steps. This takes two
# minutes on a laptop, so this page does not run it. It reads the files that this command has written, and you can write
# again:
#
# ```sh
# vitrail train digits --out runs/digits
# ```

# %% mystnb={"image": {"alt": "Accuracy on training and validation images by epoch, for the recipe small: both rise to almost 100 percent"}}
run = Path("results/digits")  # metrics.jsonl and result.json of the run
epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
result = json.loads((run / "result.json").read_text())["test"]
plt.figure(figsize=(6, 3))
plt.plot([each["epoch"] for each in epochs], [each["train_accuracy"] for each in epochs], label="training images")
plt.plot(
    [each["epoch"] for each in epochs], [each["validation_accuracy"] for each in epochs], label="validation images"
)
plt.xlabel("epoch")
plt.ylabel("accuracy")
plt.legend()
plt.show()
low, high = result["accuracy_interval"]
print(f"hidden images: {result['accuracy']:.1%} right; with other images of this kind, {low:.1%} to {high:.1%}")
assert result["accuracy"] > 0.97

# %% [markdown]
# *Validation images* are hidden from training, too, but they may be used for choices, such as the best epoch. The test
# images are used once, at the end. The range is a *95% confidence interval*: 359 images are few, and others would have
# given a somewhat different number.
#
# ## Exercises
#
# ### Exercise 1: the loss by hand
#
# Compute the mean cross-entropy of a batch from its logits. `log_softmax` and `cross_entropy` are not allowed.


# %%
def my_loss(logits_BY, labels_B):
    """Returns the mean of -log(probability of the right class)."""
    return logits_BY.mean()  # your code


def test_loss(my_loss):
    logits_BY = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [300.0, 0.0, 299.0]])
    labels_B = torch.tensor([0, 2, 0])
    expected, result = cross_entropy(logits_BY, labels_B).item(), my_loss(logits_BY, labels_B).item()
    assert abs(result - expected) < 1e-4, f"the loss is {expected:.4f}, not {result:.4f} (do large logits overflow?)"
    print("my_loss passes its test")


# %% tags=["raises-exception"]
test_loss(my_loss)


# %% tags=["solution", "hide-cell"]
def solved_loss(logits_BY, labels_B):
    logits_BY = logits_BY - logits_BY.max(dim=1, keepdim=True).values  # changes no probability, prevents overflow
    log_probability_BY = logits_BY - logits_BY.exp().sum(dim=1, keepdim=True).log()
    return -log_probability_BY[torch.arange(len(labels_B)), labels_B].mean()


test_loss(solved_loss)

# %% [markdown]
# ### Exercise 2: one batch by heart
#
# A classic check of any training code: a model must be able to learn 16 images by heart. If it cannot, there is a
# mistake in the loop. This loop has one.


# %%
def learn_by_heart(vit, images_BCHW, labels_B, steps=100):
    """Trains on one batch until every answer is right."""
    optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3)
    for _ in range(steps):
        loss = cross_entropy(vit(images_BCHW), labels_B)
        optimizer.zero_grad()
        optimizer.step()
        loss.backward()


def test_by_heart(learn_by_heart):
    torch.manual_seed(0)
    vit = vitrail.ViT(config)
    images, labels = images_BCHW[train[:16]], labels_B[train[:16]]
    learn_by_heart(vit, images, labels)
    right = (vit(images).argmax(dim=1) == labels).sum().item()
    assert right == 16, f"{right} of 16 answers are right after training"
    print("learn_by_heart passes its test")


# %% tags=["raises-exception"]
test_by_heart(learn_by_heart)


# %% tags=["solution", "hide-cell"]
def solved_by_heart(vit, images_BCHW, labels_B, steps=100):
    optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3)
    for _ in range(steps):
        loss = cross_entropy(vit(images_BCHW), labels_B)
        optimizer.zero_grad()
        loss.backward()  # before the step: zero_grad had just deleted the gradient that the step needs
        optimizer.step()


test_by_heart(solved_by_heart)

# %% [markdown]
# ## What to read next
#
# The next chapter, [on augmentation](augmentation.py), fights the overfitting that this one has found.
# [plain_loop.py](../../examples/plain_loop.py) trains in plain PyTorch with vitrail's recipe, with the same weights at
# the end as `vitrail train`. [Recipes](../reference/recipes.md) lists what a recipe can set.
