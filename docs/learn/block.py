# %% [markdown]
# # A block
#
# **Goal:** put attention and a small network into a block that can be repeated many times.
#
# **The figure it builds:** the "Transformer encoder" at the right of figure 1 of
# [the ViT paper](https://arxiv.org/abs/2010.11929).
#
# A block has two steps. First tokens exchange information ([attention](attention.py)), then each token thinks about
# what it has heard (the *MLP*). Around both there are two tricks that make deep models trainable: *norms* and
# *residual connections*. We take them one by one.

# %%
import inspect

import matplotlib.pyplot as plt
import torch
from torch import nn

import vitrail
from vitrail.model.block import Block
from vitrail.model.mlp import Mlp

torch.manual_seed(0)

# %% [markdown]
# ## The MLP
#
# MLP is short for *multi-layer perceptron*: a linear layer to a larger width (usually four times), a function that is not
# linear, and a linear layer back. It works on every token alone, with the same weights.

# %%
print(inspect.getsource(Mlp.forward))

# %% [markdown]
# Without `act`, two linear layers would be no more than one. The function here is GELU. It lets large numbers pass and
# makes negative ones almost zero. `drop` is dropout: in training it can set random numbers to zero. It is off by
# default.

# %% mystnb={"image": {"alt": "The curve of GELU: almost zero for negative inputs, close to the input for positive ones"}}
x = torch.linspace(-4, 4, 200)
plt.figure(figsize=(4, 3))
plt.plot(x, nn.functional.gelu(x))
plt.xlabel("input")
plt.ylabel("GELU")
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## The norm
#
# Numbers that grow from layer to layer make training fail. `LayerNorm` brings every token back to a standard size: it
# subtracts the mean of the token's numbers and divides by their standard deviation (the typical distance from the
# mean). Then it multiplies by a learned `weight` and adds a learned `bias`, one for each number. `eps`, a tiny number,
# prevents a division by zero.

# %%
token_D = torch.randn(48) * 7 + 3
norm = nn.LayerNorm(48, eps=1e-6)
by_hand_D = (token_D - token_D.mean()) / (token_D.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias
print("before: mean", round(token_D.mean().item(), 2), "deviation", round(token_D.std().item(), 2))
print("after:  mean", round(by_hand_D.mean().item(), 2), "deviation", round(by_hand_D.std().item(), 2))
assert torch.allclose(by_hand_D, norm(token_D), atol=1e-5)

# %% [markdown]
# ## The block
#
# A *residual connection* adds the result of a step to its input, instead of replacing it. So a token is never lost: a
# step only adds a correction. This is the whole block:

# %%
print(inspect.getsource(Block.forward))

# %% [markdown]
# Read it from the inside: norm, attention, add; norm, MLP, add. `ls1` and `ls2` (LayerScale) and `drop_path` do nothing
# unless the config asks for them. The first scales a correction by learned factors; the second skips the correction for
# random images in training. The [annotated source](../../src/vitrail/model/block.py) has both.
#
# ## Why the input is added
#
# We build stacks of blocks, with random weights, and measure the *gradient* at the first token: how much the output
# of the stack reacts to a change of the input. Training needs it. If it is almost zero, the first layers do not learn.
# The second stack is the same without "x +".


# %%
class WithoutResidual(nn.Module):
    """A block whose steps replace their input."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x_BTD):
        x_BTD = self.block.attn(self.block.norm1(x_BTD))
        return self.block.mlp(self.block.norm2(x_BTD))


config = vitrail.ViTConfig(width=48, heads=4, mlp_width=192)
depths = (1, 2, 4, 8, 12, 16)


def measure_gradient(wrap, depth):
    """Returns the norm of the gradient of the output's sum with respect to the input."""
    torch.manual_seed(0)
    blocks = [Block(config, 0.0) for _ in range(depth)]
    for block in blocks:
        for parameter in block.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.05)
    x_BTD = torch.randn(1, 16, 48, requires_grad=True)
    out_BTD = nn.Sequential(*map(wrap, blocks))(x_BTD)
    (out_BTD * torch.randn_like(out_BTD)).sum().backward()
    return x_BTD.grad.norm().item()


with_residual = [measure_gradient(lambda block: block, depth) for depth in depths]
without_residual = [measure_gradient(WithoutResidual, depth) for depth in depths]

# %% mystnb={"image": {"alt": "Gradient by number of blocks, on a logarithmic scale: level with residual connections, falling steeply without them"}}
plt.figure(figsize=(6, 3))
plt.semilogy(depths, with_residual, marker="o", label="x + step(x), as in a block")
plt.semilogy(depths, without_residual, marker="o", label="step(x)")
plt.xlabel("number of blocks")
plt.ylabel("gradient at the input")
plt.legend()
plt.show()
print(f"16 blocks: {with_residual[-1]:.1f} with, {without_residual[-1]:.1e} without residual connections")
assert with_residual[-1] > 1000 * without_residual[-1]

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: your own norm


# %%
def my_norm(x_BTD, weight_D, bias_D, eps=1e-6):
    """Returns the same as LayerNorm: each token with mean 0 and deviation 1, then weight and bias."""
    return x_BTD  # your code


def test_norm(my_norm):
    torch.manual_seed(0)
    norm, x_BTD = nn.LayerNorm(12, eps=1e-6), 5 * torch.randn(2, 3, 12) + 1
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    difference = (my_norm(x_BTD, norm.weight, norm.bias) - norm(x_BTD)).abs().max().item()
    assert difference < 1e-5, f"the largest difference from LayerNorm is {difference:.2f}"
    print("my_norm passes its test")


# %% tags=["raises-exception"]
test_norm(my_norm)


# %% tags=["solution", "hide-cell"]
def solved_norm(x_BTD, weight_D, bias_D, eps=1e-6):
    centered = x_BTD - x_BTD.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)  # not .var(), which divides by D - 1
    return centered / (variance + eps).sqrt() * weight_D + bias_D


test_norm(solved_norm)

# %% [markdown]
# ### Exercise 2: your own block
#
# Write the forward pass of a block from its parts. The attempt below is a *post-norm* block, as in the first Transformer:
# the norms are at another place. The weights of a ViT do not work in it.


# %%
def my_block(block, x_BTD):
    """Returns block(x_BTD); you may call block.norm1, block.attn, block.norm2 and block.mlp."""
    x_BTD = block.norm1(x_BTD + block.attn(x_BTD))
    return block.norm2(x_BTD + block.mlp(x_BTD))


def test_block(my_block):
    torch.manual_seed(0)
    block, x_BTD = Block(config, 0.0), torch.randn(2, 5, 48)
    difference = (my_block(block, x_BTD) - block(x_BTD)).abs().max().item()
    assert difference < 1e-5, f"the largest difference is {difference:.2f}: where are the norms?"
    print("my_block passes its test")


# %% tags=["raises-exception"]
test_block(my_block)


# %% tags=["solution", "hide-cell"]
def solved_block(block, x_BTD):
    x_BTD = x_BTD + block.attn(block.norm1(x_BTD))
    return x_BTD + block.mlp(block.norm2(x_BTD))


test_block(solved_block)

# %% [markdown]
# ### Exercise 3: count
#
# How many numbers does a block learn? Write it as a formula of the width `D` and the MLP's width `M`.


# %%
def count_block(D, M):
    """Returns the number of learned numbers of a block without LayerScale."""
    return D * M  # your code


def test_count_block(count_block):
    for width, mlp_width in ((48, 192), (768, 3072)):
        block = Block(vitrail.ViTConfig(width=width, heads=4, mlp_width=mlp_width), 0.0)
        expected = sum(parameter.numel() for parameter in block.parameters())
        assert count_block(width, mlp_width) == expected, f"width {width}: the block has {expected:,} parameters"
    print("count_block passes its test")


# %% tags=["raises-exception"]
test_count_block(count_block)


# %% tags=["solution", "hide-cell"]
def solved_count_block(D, M):
    norms = 2 * 2 * D
    attention = 3 * D * (D + 1) + D * (D + 1)  # qkv and proj; + 1: the bias
    mlp = M * (D + 1) + D * (M + 1)
    return norms + attention + mlp


test_count_block(solved_count_block)

# %% [markdown]
# ## What to read next
#
# [The chapter on the whole model](model.py) stacks the blocks to a whole model and compares it with other libraries.
