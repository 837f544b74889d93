"""Trains a ViT in plain PyTorch with vitrail's data and recipe: python examples/plain_loop.py cifar10 [EPOCHS]."""

import sys

import torch
from torch.nn.functional import cross_entropy

import vitrail
from vitrail.data.augment import build_augmentation
from vitrail.data.loader import TrainLoader
from vitrail.data.open import open_data
from vitrail.runs.start import random_vit
from vitrail.training.data_defaults import complete_recipe, resolve_model
from vitrail.training.optimizers import build_optimizers
from vitrail.training.recipes import find_recipe
from vitrail.training.schedules import lr_factor

device = "cuda" if torch.cuda.is_available() else "cpu"
splits = open_data(sys.argv[1])  # .train, .validation and .test
recipe = find_recipe("small", epochs=int(sys.argv[2]) if len(sys.argv) > 2 else 10, ema_decay=None)
config, preprocess = resolve_model(recipe, splits)  # with the image size, channels and classes of the data
recipe, preprocess = complete_recipe(recipe, config, preprocess, splits, transfers=False)
vit = random_vit(config, recipe).to(device)  # vitrail.ViT(config), with weights drawn as the recipe says
loader = TrainLoader(splits.train, build_augmentation(recipe.augment, preprocess), recipe.batch_size, recipe.seed)
optimizers = build_optimizers(vit, recipe)  # Muon for the matrices of the blocks, AdamW for the rest
peaks = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
for epoch in range(recipe.epochs):
    for step, (pixels, labels) in enumerate(loader.epoch(epoch), start=epoch * len(loader)):
        for group, peak in peaks:
            group["lr"] = peak * lr_factor(step, recipe.epochs * len(loader), recipe)
        logits = vit(preprocess.normalize(pixels.to(device)))  # uint8 (B, C, H, W) -> (B, Y)
        loss = cross_entropy(logits, labels.to(device), label_smoothing=recipe.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vit.parameters(), recipe.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
vitrail.Classifier(vit, splits.classes, preprocess).save("plain_loop.safetensors")
print(f"test accuracy {vitrail.evaluate('plain_loop.safetensors', splits).accuracy:.3f}")
