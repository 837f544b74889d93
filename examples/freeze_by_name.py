"""Fine-tunes with parameters frozen by their names: python examples/freeze_by_name.py DATA.

On the command line: vitrail train DATA --from cifar10-small --freeze "patch_embed position blocks.*.attn"
"""

import sys

import vitrail

FROZEN = ("patch_embed", "position", "blocks.*.attn")  # modules or names of vit.named_parameters(), as in fnmatch

if __name__ == "__main__":
    before = vitrail.load("cifar10-small")
    options = dict(epochs=3, validation_fraction=0, report=False)
    run = vitrail.train(sys.argv[1], model=before, freeze=FROZEN, out="runs/frozen", **options)

    # A ViT whose parameters have requires_grad=False is respected, too: model.blocks[0].requires_grad_(False).
    after = run.classifier.vit.state_dict()
    names = [name for name, tensor in before.vit.state_dict().items() if not name.startswith("head.")]
    unchanged = [name for name in names if (after[name] == before.vit.state_dict()[name]).all()]
    print(f"{len(unchanged)} of {len(names)} tensors are unchanged; test accuracy {run.result['test']['accuracy']:.3f}")
