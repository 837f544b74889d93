# %% [markdown]
# # The whole model
#
# **Goal:** assemble a Vision Transformer, and prove that it is the same model as in torchvision and timm.
#
# **The figure it builds:** figure 1 of [the ViT paper](https://arxiv.org/abs/2010.11929), complete.
#
# We have [patches](patches.py), [positions](positions.py), [attention](attention.py) and
# [blocks](block.py). Two small parts are missing: the class token and the head.

# %%
import inspect

import matplotlib.pyplot as plt
import timm
import torch
import torchvision

import vitrail

torch.manual_seed(0)

# %% [markdown]
# ## From tokens to one answer
#
# After the last block there is a vector for each patch, but one image needs one answer. The paper adds one more token at
# the start, the *class token*. It belongs to no patch. Its start value is learned, and in every block it collects what
# it needs from the patches. At the end only this token is read. (The other common way is the mean of all patches,
# `pool="mean"`.) Some models have further tokens of this kind, called *registers*. vitrail calls all of them *prefix
# tokens*, because they stand before the patches.
#
# The *head* is a linear layer from this vector to one number for each class, the *logit*. The largest logit is the
# predicted class. Softmax ([the chapter on attention](attention.py)) turns logits into probabilities.
#
# ## The model
#
# This is all of it. `forward` is the figure, line by line:

# %%
for method in ("forward", "tokens", "embed", "encode"):
    print(inspect.getsource(getattr(vitrail.ViT, method)))

# %% [markdown]
# The config says how large the parts are. Its defaults are ViT-B/16, the paper's base size with patches of 16 pixels:

# %%
config = vitrail.ViTConfig(classes=1000)
print(f"width {config.width}, depth {config.depth}, heads {config.heads}, grid {config.grid}")
with torch.device("meta"):  # shapes only: no memory for the weights
    base = vitrail.ViT(config)
millions = sum(parameter.numel() for parameter in base.parameters()) / 1e6
print(f"{millions:.1f} million parameters")
assert round(millions) == 87  # the paper says 86 (table 1), without the head

# %% mystnb={"image": {"alt": "Bars: almost all parameters of ViT-B/16 are in the MLPs and in attention, little in patch embedding, positions and head"}}
parts = {
    "patch embedding": "patch_embed",
    "positions": "position",
    "attention": ".attn.",
    "MLP": ".mlp.",
    "head": "head",
}
sizes = [
    sum(parameter.numel() for name, parameter in base.named_parameters() if key in name) / 1e6 for key in parts.values()
]
plt.figure(figsize=(6, 2.5))
plt.barh(list(parts), sizes)
plt.xlabel("million parameters of ViT-B/16")
plt.show()

# %% [markdown]
# ## The same model as in torchvision
#
# Two programs are the same model if they give the same output for the same weights and the same image. We make a small
# ViT of torchvision with random weights, let vitrail read its weights, and compare. `double()` computes with 64 bits, so
# that rounding does not hide a mistake.


# %%
def randomize(module):
    """Gives every parameter random values, also those that start as zero and could hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2)
    return module.eval()


theirs = randomize(
    torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )
)
ours, theirs = vitrail.load(theirs).vit.double(), theirs.double()
images_BCHW = torch.randn(4, 3, 32, 32, dtype=torch.float64)
with torch.no_grad():
    difference = (ours(images_BCHW) - theirs(images_BCHW)).abs().max().item()
print(f"torchvision: largest difference of a logit {difference:.1e}")
assert difference < 1e-6

# %% [markdown]
# ## The same model as in timm
#
# [timm](https://github.com/huggingface/pytorch-image-models) is the largest collection of vision models for PyTorch.

# %%
theirs = randomize(
    timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_heads=4, embed_dim=64, num_classes=10
    )
)
ours, theirs = vitrail.load(theirs).vit.double(), theirs.double()
with torch.no_grad():
    difference = (ours(images_BCHW) - theirs(images_BCHW)).abs().max().item()
print(f"timm: largest difference of a logit {difference:.1e}")
assert difference < 1e-6

# %% [markdown]
# [Parity](../parity.md) has such differences for every family of public models.
#
# ## Exercises
#
# ### Exercise 1: your own Vision Transformer
#
# Write a ViT from PyTorch's parts: `nn.Conv2d`, `nn.Linear`, `nn.LayerNorm`, and attention. Names of the parameters do
# not matter: the test gives yours the values of vitrail's in order, so create the parts in the order that is printed
# here. (PyTorch lists an `nn.Parameter` of the model itself before those of its parts; `nn.Embedding(16, 32)` is a part
# with a matrix, good for positions.)

# %%
small = vitrail.ViTConfig(width=32, depth=2, heads=4, mlp_width=64, patch=8, image_size=32, classes=10)
for name, parameter in vitrail.ViT(small).named_parameters():
    if not name.startswith("blocks.1"):
        print(f"{name:24} {tuple(parameter.shape)}")


# %%
class MyViT(torch.nn.Module):
    """Image (B, 3, 32, 32) -> logits (B, 10); width 32, 2 blocks, 4 heads, MLP width 64, patch 8."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(32, 10)  # your code

    def forward(self, image_BCHW):
        return self.head(image_BCHW.flatten(1)[:, :32])  # your code


def test_vit(MyViT):
    torch.manual_seed(0)
    reference, mine = vitrail.ViT(small).eval(), MyViT().eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    needed, got = list(reference.parameters()), list(mine.parameters())
    count, expected = sum(p.numel() for p in got), sum(p.numel() for p in needed)
    assert count == expected, f"your model has {count:,} parameters, the reference {expected:,}"
    assert [p.numel() for p in got] == [p.numel() for p in needed], "the parameters have another order or other sizes"
    with torch.no_grad():
        for target, source in zip(got, needed):
            target.copy_(source.view(target.shape))
        image_BCHW = torch.randn(2, 3, 32, 32)
        difference = (mine(image_BCHW) - reference(image_BCHW)).abs().max().item()
    assert difference < 1e-3, f"the largest difference of a logit is {difference:.2f}"
    print("MyViT passes its test")


# %% tags=["raises-exception"]
test_vit(MyViT)


# %% tags=["solution", "hide-cell"]
class SolvedBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(32, eps=1e-6)
        self.qkv, self.proj = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.norm2 = torch.nn.LayerNorm(32, eps=1e-6)
        self.fc1, self.fc2 = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))


class SolvedViT(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.class_token = torch.nn.Parameter(torch.zeros(1, 32))
        self.patches = torch.nn.Conv2d(3, 32, 8, stride=8)
        self.positions = torch.nn.Embedding(16, 32)
        self.blocks = torch.nn.Sequential(SolvedBlock(), SolvedBlock())
        self.norm, self.head = torch.nn.LayerNorm(32, eps=1e-6), torch.nn.Linear(32, 10)

    def forward(self, image_BCHW):
        x = self.patches(image_BCHW).flatten(2).mT + self.positions.weight
        x = torch.cat([self.class_token.expand(len(x), 1, 32), x], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


test_vit(SolvedViT)

# %% [markdown]
# ### Exercise 2: translate names
#
# torchvision calls `encoder.layers.encoder_layer_0.mlp.0.weight` what vitrail calls `blocks.0.mlp.fc1.weight`. Write the
# translation for all parts of a block.


# %%
def translate(name):
    """Returns vitrail's name for a name of torchvision within `encoder.layers`."""
    return name  # your code


def test_translate(translate):
    layer = "encoder.layers.encoder_layer_11."
    for theirs, ours in {
        "ln_1.weight": "norm1.weight",
        "self_attention.in_proj_weight": "attn.qkv.weight",
        "self_attention.in_proj_bias": "attn.qkv.bias",
        "self_attention.out_proj.weight": "attn.proj.weight",
        "ln_2.bias": "norm2.bias",
        "mlp.0.weight": "mlp.fc1.weight",
        "mlp.3.bias": "mlp.fc2.bias",
    }.items():
        assert translate(layer + theirs) == f"blocks.11.{ours}", f"{theirs} becomes {translate(layer + theirs)}"
    print("translate passes its test")


# %% tags=["raises-exception"]
test_translate(translate)


# %% tags=["solution", "hide-cell"]
def solved_translate(name):
    for theirs, ours in {
        "encoder.layers.encoder_layer_": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }.items():
        name = name.replace(theirs, ours)
    return name


test_translate(solved_translate)

# %% [markdown]
# ## What to read next
#
# [The chapter on training](digits.py) trains it. All files of the model, with notes beside the code:
# [the annotated source](../../src/vitrail/model).
