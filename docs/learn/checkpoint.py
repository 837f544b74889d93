# %% [markdown]
# # Reading a checkpoint
#
# **Goal:** put the weights of another library into our model, tensor by tensor, and find the place if something is wrong.
#
# **The figure it builds:** the table of [parity](../parity.md), one row of it.
#
# Training a large ViT takes weeks on many machines. Others have done it, and their *checkpoints* (files of weights) are
# public. A checkpoint is a table of names and tensors. The names and shapes are those of the library that wrote it, so a
# program that reads it needs a translation. We write one for timm. A public file is large, so this page makes a small
# model of timm with random weights: its tensors have the same names as those of a public file.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch

import vitrail
from vitrail.data.preprocess import Preprocess
from vitrail.differences import find_differences
from vitrail.weights.layouts import LAYOUTS

torch.manual_seed(0)
theirs = timm.create_model(
    "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=10
).eval()
with torch.no_grad():
    for parameter in theirs.parameters():
        parameter.normal_(0, 0.2)

# %% [markdown]
# ## Side by side
#
# First we list both models. Names that both have are left out for all blocks but the first.

# %%
config = vitrail.ViTConfig(width=64, depth=3, heads=4, mlp_width=256, patch=8, image_size=32, classes=10)
ours = vitrail.ViT(config).eval()
tensors = theirs.state_dict()
needed = ours.state_dict()
for name in dict.fromkeys([*tensors, *needed]):
    if not name.startswith(("blocks.1", "blocks.2")):
        first, second = (tuple(table[name].shape) if name in table else "-" for table in (tensors, needed))
        print(f"{name:24} timm {first!s:16} vitrail {second}")

# %% [markdown]
# Almost everything has the same name and shape. Three tensors do not:
#
# - `cls_token`, the class token of [the whole model](model.py), is `prefix` here, without an axis for the batch.
# - `pos_embed` has 17 rows: one for the class token and 16 for the patches. Ours, `position.grid`, has 4 x 4 places and
#   nothing for the class token. A position that is always added to the same token can be added once, while reading. So
#   there is one thing less to know about the model.
#
# ## The translation


# %%
def read(tensors):
    """Returns timm's tensors under our names and in our shapes."""
    state = {}
    for name, tensor in tensors.items():
        if name == "cls_token":
            state["prefix"] = tensor[0] + tensors["pos_embed"][0, :1]
        elif name == "pos_embed":
            state["position.grid"] = tensor[0, 1:].view(*config.grid, config.width)
        else:
            state[name] = tensor
    return state


ours.load_state_dict(read(tensors))
images_BCHW = torch.randn(4, 3, 32, 32, dtype=torch.float64)
with torch.no_grad():
    difference = (ours.double()(images_BCHW) - theirs.double()(images_BCHW)).abs().max().item()
print(f"largest difference of a logit: {difference:.1e}")
assert difference < 1e-6
ours.float(), theirs.float()

# %% [markdown]
# `load_state_dict` refuses a name that is missing or unknown. That is half of the proof; the equal outputs are the other
# half. vitrail's own translations are tables like this one, for timm:

# %%
for name, row in LAYOUTS["timm"].rows.items():
    if row != name:
        print(f"{name:20} {row if isinstance(row, str) else type(row).__name__}")

# %% [markdown]
# Rows with the same name on both sides are left out. `Prefix` and `PositionTable` are what we have just written.
# `{wb}` is `weight` or `bias`, `{i}` is the number of a block. `vitrail.load("timm/...")` downloads a
# checkpoint and reads it with this table.
#
# ## When something is wrong
#
# Here is the most common mistake: the position of the class token is forgotten. The model still runs. Its answers are
# only a little worse, which can stay unnoticed for weeks. How does one find the place?


# %%
def read_wrongly(tensors):
    return {**read(tensors), "prefix": tensors["cls_token"][0]}


def make_classifier(state):
    vit = vitrail.ViT(config).eval().requires_grad_(False)
    vit.load_state_dict(state)
    preprocess = Preprocess(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.Classifier(vit, tuple(map(str, range(10))), preprocess)


right, wrong = make_classifier(read(tensors)), make_classifier(read_wrongly(tensors))

# %% [markdown]
# `vitrail inspect A --against B` compares two models: all their tensors, and for the same images everything that
# attention, MLP and block return (the *activations*). The first line that differs is where to look.

# %%
with tempfile.TemporaryDirectory() as folder:
    right.save(Path(folder) / "right.safetensors")
    wrong.save(Path(folder) / "wrong.safetensors")
    command = [sys.executable, "-m", "vitrail", "inspect", "right.safetensors", "--against", "wrong.safetensors"]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
print(output)
assert "1 of 44 tensors differ; the first is prefix" in output

# %% [markdown]
# In a terminal the second model may also be `timm`, `transformers` or `torchvision`: then the same weights run in that
# library's own code, and only activations are compared.
#
# The difference starts in one token. Attention spreads it to all of them. The picture shows how the relative difference
# travels through the model.

# %% mystnb={"image": {"alt": "Bars of the largest relative difference after each part: present from the first tokens on, through all blocks to the output"}}
rows = find_differences(right, wrong).activations
plt.figure(figsize=(7, 3))
plt.bar([row.name for row in rows], [row.max_difference / row.largest for row in rows])
plt.xticks(rotation=60)
plt.ylabel("relative difference")
plt.show()

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: three matrices into one
#
# transformers keeps queries, keys and values in three tensors. Ours is one, `qkv`, with the rows of the queries first,
# then those of the keys, then those of the values.


# %%
def join(query, key, value):
    """Returns the weight of qkv, (3D, D)."""
    return query  # your code


def test_join(join):
    parts = torch.randn(3, 64, 64)
    x = torch.randn(2, 64)
    result = join(*parts)
    assert result.shape == (192, 64), f"the shape is {tuple(result.shape)}, not (192, 64)"
    for part, out in zip(parts, (x @ result.mT).chunk(3, dim=-1)):
        assert torch.allclose(x @ part.mT, out, atol=1e-4), "the shape is right, the order is not"
    print("join passes its test")


# %% tags=["raises-exception"]
test_join(join)


# %% tags=["solution", "hide-cell"]
def solved_join(query, key, value):
    return torch.cat([query, key, value])


test_join(solved_join)

# %% [markdown]
# ### Exercise 2: find the mistake
#
# Someone has read the file and mixed something up. Find the name of the first wrong tensor, and say by which factor it
# is wrong. `find_differences(right, mixed_up)` has the rows.

# %%
mixed_state = read(tensors)
mixed_state["blocks.1.attn.proj.bias"] = mixed_state["blocks.1.attn.proj.bias"] * 3
mixed_state["blocks.2.norm2.weight"] = mixed_state["blocks.2.norm2.weight"] * 0.5
mixed_up = make_classifier(mixed_state)


def find_mistake(right, mixed_up):
    """Returns the name of the first tensor that differs, and the factor."""
    return "head.weight", 1.0  # your code


def test_find_mistake(find_mistake):
    name, factor = find_mistake(right, mixed_up)
    assert name == "blocks.1.attn.proj.bias", f"{name} is not the first tensor that differs"
    assert abs(factor - 3) < 1e-4, f"the tensor is right, the factor {factor:.2f} is not"
    print("find_mistake passes its test")


# %% tags=["raises-exception"]
test_find_mistake(find_mistake)


# %% tags=["solution", "hide-cell"]
def solved_find_mistake(right, mixed_up):
    name = find_differences(right, mixed_up).first_tensor.name
    first, second = right.vit.state_dict()[name], mixed_up.vit.state_dict()[name]
    return name, (second / first).mean().item()


test_find_mistake(solved_find_mistake)

# %% [markdown]
# ## What to read next
#
# [The next chapter](finetune.py) starts a training from such weights.
# [Public weights](../howto/public-model.md#which-files-are-read) says which checkpoints vitrail reads, and
# [the list of cards](../reference/cards.md) names them.
