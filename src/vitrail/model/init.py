"""The initial value of every parameter.

| parameter                       | initial value                                                  |
| ------------------------------- | -------------------------------------------------------------- |
| weights of linear layers        | normal, `std` (0.02)                                           |
| last linear layer of a branch   | zero with `zero_init_residual`: each block starts as identity  |
| patch projection                | normal, 1/sqrt(values in a patch), or `patch_init_std`         |
| tokens, positions, pool's query | truncated normal, 0.02                                         |
| norms                           | weight one, bias zero                                          |
| biases                          | zero                                                           |
| LayerScale                      | `layer_scale` of the config                                    |
"""

from torch import nn

from vitrail.model.block import LayerScale

EMBEDDING_NAMES = ("prefix", "position.grid", "pool.query")


def initialize(
    vit: nn.Module, *, std: float = 0.02, patch_init_std: float | None = None, zero_init_residual: bool = False
) -> None:
    """Draws every parameter of a ViT from torch's global generator; on the meta device there are no values to draw."""
    if next(vit.parameters()).is_meta:
        return  # a draw there imports 900 modules of torch, which takes over a second
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=patch_init_std or module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.init)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in vit.named_parameters():
        if name in EMBEDDING_NAMES:
            nn.init.trunc_normal_(parameter, std=0.02)
        is_branch_end = name.startswith("blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        if zero_init_residual and is_branch_end:
            nn.init.zeros_(parameter)
