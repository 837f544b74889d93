# %% [markdown]
# # Attention
#
# **Goal:** let every token collect information from the tokens that matter to it.
#
# **The figure it builds:** figure 2 of [Attention Is All You Need](https://arxiv.org/abs/1706.03762) (Vaswani et al.
# 2017), which the [ViT paper](https://arxiv.org/abs/2010.11929) uses unchanged: the box "multi-head attention".
#
# After [the chapter on patches](patches.py) and [the chapter on positions](positions.py) each token knows one patch and its place. The patch
# with an ear does not know of the patch with a whisker. Attention is the only step in which tokens exchange anything.
# First we compute it by hand with three tokens, then we read the module.

# %%
import inspect

import matplotlib.pyplot as plt
import torch

import vitrail
from vitrail.model.attention import Attention, attend, attention_weights

# %% [markdown]
# ## By hand
#
# Think of a question in a room with three people. You ask, everyone says what they know about, and you listen most to
# those who fit your question. Each token has three vectors:
#
# - a **query**: what it looks for,
# - a **key**: what it offers,
# - a **value**: what it says.
#
# Here are three tokens with vectors of two numbers. `T` is the axis of the tokens that ask, `S` that of the tokens that
# answer, `K` the length of a query or key.

# %%
query_TK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
key_SK = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
value_SK = torch.tensor([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0]])

# %% [markdown]
# **Step 1: compare.** The *dot product* of a query and a key multiplies their numbers in pairs and adds them up. It is
# large if both point in the same direction. We do this for token 0, and divide by the square root of `K` = 2.
# Without the division, long vectors would give huge scores.

# %%
scores = []
for s in range(3):
    product = query_TK[0, 0] * key_SK[s, 0] + query_TK[0, 1] * key_SK[s, 1]
    scores.append(product / 2**0.5)
print("scores of token 0:", [round(score.item(), 3) for score in scores])

# %% [markdown]
# **Step 2: turn scores into shares.** *Softmax* takes the exponential of each score and divides by their sum. The
# results are positive and add up to 1.

# %%
exponentials = [score.exp() for score in scores]
weights = [exponential / sum(exponentials) for exponential in exponentials]
print("weights of token 0:", [round(weight.item(), 3) for weight in weights], "sum:", round(sum(weights).item(), 3))

# %% [markdown]
# **Step 3: mix the values** with these shares. This is what token 0 takes home.

# %%
by_hand_K = sum(weight * value for weight, value in zip(weights, value_SK))
print("output of token 0:", by_hand_K)

# %% [markdown]
# For all tokens at once this is a formula: `softmax(q kᵀ / √K) v`, where `kᵀ` is `k` with its two axes exchanged, so
# that `q kᵀ` has the dot product of every query with every key. vitrail has the first part as a function:

# %%
print(inspect.getsource(attention_weights))
weights_TS = attention_weights(query_TK, key_SK)
print(weights_TS)
output_TK = weights_TS @ value_SK
assert torch.allclose(output_TK[0], by_hand_K)

# %% [markdown]
# Row `t` of this matrix says how token `t` shares out its attention. The matrix has `T x T` numbers. Twice as many
# tokens are four times as many numbers: this is why pixels are not tokens.
#
# ## Several heads
#
# One set of weights can follow one interest: color, or shape, or neighbors. So the width `D` is divided into `N` heads
# of `K = D / N` numbers, and each head attends on its own. In the names, `B` is a batch of images: `q_BNTK` has a query
# of `K` numbers for each image, head and token.
#
# ## The module
#
# Where do queries, keys and values come from? Three linear layers make them from the tokens. vitrail keeps the three in
# one layer, `qkv`, since one large multiplication is faster than three small ones. Another linear layer, `proj`, mixes
# the results of the heads.

# %%
print(inspect.getsource(Attention.__init__))
print(inspect.getsource(Attention.forward))

# %% [markdown]
# `rotate` belongs to the rotary positions of the chapter before. `self.attend` computes the formula. It asks PyTorch for the
# fastest way on this computer, one that never keeps the whole matrix in memory:

# %%
print(inspect.getsource(attend))

# %% [markdown]
# We check the module against PyTorch's own, `torch.nn.MultiheadAttention`, with the same weights.

# %%
torch.manual_seed(0)
config = vitrail.ViTConfig(width=48, heads=4, mlp_width=96, depth=1)
ours, theirs = Attention(config), torch.nn.MultiheadAttention(48, 4, batch_first=True)
with torch.no_grad():
    theirs.in_proj_weight.copy_(ours.qkv.weight)
    theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj.weight.copy_(ours.proj.weight)
    theirs.out_proj.bias.copy_(ours.proj.bias)
    tokens_BTD = torch.randn(2, 17, 48)
    difference = (ours(tokens_BTD) - theirs(tokens_BTD, tokens_BTD, tokens_BTD)[0]).abs().max().item()
print(f"largest difference from torch.nn.MultiheadAttention: {difference:.1e}")
assert difference < 1e-6

# %% [markdown]
# ## Attention of a trained model
#
# The fast way does not keep the matrix, so how can one look at it? `vitrail.recording` notes the queries and keys while
# the model runs and computes the matrix from them afterwards. Here is the attention of the last layer for a photo: how
# much each head of the patch in the red square listens to every other patch. The trained model is `cifar10-small`,
# whose images have 32 x 32 pixels.

# %% mystnb={"image": {"alt": "The photo of a cat with a marked patch, and one map for each head: the heads look at different parts of the image"}}
classifier = vitrail.load("cifar10-small")
pixels_CHW = classifier.read_image("../../examples/photos/cat.jpg")
with vitrail.recording(classifier.vit) as record:
    classifier.logits(pixels_CHW[None])
attention_BNTT = record.attention(layer=-1)
heads, rows, columns = classifier.vit.config.heads, *classifier.vit.config.grid
row, column = 2, 3
figure, panels = plt.subplots(1, heads + 1, figsize=(2.3 * (heads + 1), 2.5))
panels[0].imshow(pixels_CHW.permute(1, 2, 0))
patch = classifier.vit.config.patch
panels[0].add_patch(plt.Rectangle((column * patch - 0.5, row * patch - 0.5), patch, patch, fill=False, color="red"))
panels[0].set_title("the photo")
prefix = classifier.vit.config.prefix_tokens  # not patches; the chapter on the whole model explains them
for head in range(heads):
    weights_hw = attention_BNTT[0, head, prefix + row * columns + column, prefix:].view(rows, columns)
    panels[head + 1].imshow(weights_hw)
    panels[head + 1].set_title(f"head {head}")
for axes in panels:
    axes.axis("off")
plt.show()

# %% [markdown]
# The maps are pretty. They do not say why the model sees a cat: attention says where a model looks, not what
# it concludes. [Explanations](../explanations.md) compares such maps with others.
#
# ## Exercises
#
# ### Exercise 1: your own attention
#
# Write `softmax(q kᵀ / √K) v` for tensors of any number of leading axes. Use neither `attention_weights` nor PyTorch's
# `scaled_dot_product_attention`.


# %%
def my_attention(q_BNTK, k_BNSK, v_BNSK):
    """Returns the mixed values, (B, N, T, K)."""
    return v_BNSK  # your code


def test_attention(my_attention):
    torch.manual_seed(1)
    q_BNTK, k_BNSK, v_BNSK = (torch.randn(2, 3, tokens, 8) for tokens in (5, 7, 7))
    expected, result = attend(q_BNTK, k_BNSK, v_BNSK), my_attention(q_BNTK, k_BNSK, v_BNSK)
    assert result.shape == expected.shape, f"the shape is {tuple(result.shape)}, not {tuple(expected.shape)}"
    difference = (result - expected).abs().max().item()
    assert difference < 1e-5, (
        f"the largest difference is {difference:.3f}: is the softmax over the keys? the root of K?"
    )
    large = my_attention(100 * q_BNTK, 100 * k_BNSK, v_BNSK)
    assert large.isfinite().all(), "large scores overflow: subtract the largest score before the exponential"
    print("my_attention passes its test")


# %% tags=["raises-exception"]
test_attention(my_attention)


# %% tags=["solution", "hide-cell"]
def solved_attention(q_BNTK, k_BNSK, v_BNSK):
    scores_BNTS = q_BNTK @ k_BNSK.transpose(-2, -1) / q_BNTK.shape[-1] ** 0.5
    scores_BNTS = scores_BNTS - scores_BNTS.max(dim=-1, keepdim=True).values
    weights_BNTS = scores_BNTS.exp()
    return weights_BNTS / weights_BNTS.sum(dim=-1, keepdim=True) @ v_BNSK


test_attention(solved_attention)

# %% [markdown]
# ### Exercise 2: split into heads
#
# Turn queries of the full width, `(B, T, D)`, into those of the heads, `(B, N, T, K)`. A `reshape` alone gives the right
# shape and mixes up the tokens: a common mistake.


# %%
def split_heads(q_BTD, heads):
    """Returns the queries of each head, (B, N, T, K)."""
    batch, tokens, width = q_BTD.shape
    return q_BTD.reshape(batch, heads, tokens, width // heads)  # the common mistake


def test_split_heads(split_heads):
    q_BTD = torch.arange(2 * 5 * 12.0).view(2, 5, 12)
    result = split_heads(q_BTD, 3)
    assert result.shape == (2, 3, 5, 4), f"the shape is {tuple(result.shape)}"
    for head in range(3):
        assert torch.equal(result[:, head], q_BTD[..., 4 * head : 4 * head + 4]), f"head {head} has numbers of others"
    print("split_heads passes its test")


# %% tags=["raises-exception"]
test_split_heads(split_heads)


# %% tags=["solution", "hide-cell"]
def solved_split_heads(q_BTD, heads):
    return q_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)


test_split_heads(solved_split_heads)

# %% [markdown]
# ### Exercise 3: a token that listens to itself
#
# Choose queries and keys for which every token gives almost all of its attention to itself.


# %%
def choose(tokens):
    """Returns queries and keys, (T, K) each, for which attention_weights is almost the identity matrix."""
    return torch.ones(tokens, 4), torch.ones(tokens, 4)  # your code


def test_choose(choose):
    weights_TS = attention_weights(*choose(6))
    smallest = weights_TS.diagonal().min().item()
    assert smallest > 0.99, f"some token gives itself only {smallest:.0%} of its attention"
    print("choose passes its test")


# %% tags=["raises-exception"]
test_choose(choose)


# %% tags=["solution", "hide-cell"]
def solved_choose(tokens):
    return 20 * torch.eye(tokens), torch.eye(tokens)  # each token has a direction of its own


test_choose(solved_choose)

# %% [markdown]
# ## What to read next
#
# [The chapter on blocks](block.py) puts attention into a block. [attention.py](../../src/vitrail/model/attention.py) is the whole
# file; [hidden_states.py](../../examples/hidden_states.py) records the attention of every layer.
