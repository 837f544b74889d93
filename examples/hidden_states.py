"""Reads the hidden states and the attention of every layer: python examples/hidden_states.py DATA [MODEL]."""

import sys

import torch

import vitrail
from vitrail.data.open import open_data

if __name__ == "__main__":
    clf = vitrail.load(sys.argv[2] if len(sys.argv) > 2 else "cifar10-small")
    images = open_data(sys.argv[1], channels=clf.preprocess.channels).train
    pixels = images.load_batch(clf.preprocess, range(8))  # uint8 (B, C, H, W)

    hidden = []  # the tokens after each block, (B, T, D): prefix tokens first, then patches row by row
    hooks = []
    for block in clf.vit.blocks:
        hooks.append(block.register_forward_hook(lambda block, inputs, output: hidden.append(output)))
    with torch.no_grad(), vitrail.recording(clf.vit) as record:
        logits = clf.vit(clf.normalize(pixels))
    for hook in hooks:
        hook.remove()

    for layer, tokens in enumerate(hidden):
        attention = record.attention(layer)  # (B, N, T, T): image, head, query, key
        entropy = -(attention * attention.clamp(min=1e-12).log()).sum(-1).mean()
        norm = tokens.norm(dim=-1).mean()
        print(f"layer {layer}: tokens {tuple(tokens.shape)}, norm {norm:.2f}, entropy of the attention {entropy:.2f}")
    same = torch.allclose(clf.vit.head(clf.vit.pool(clf.vit.norm(hidden[-1]))), logits, atol=1e-5)
    print(f"norm, pool and head of the last hidden state are the logits: {same}")
