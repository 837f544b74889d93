"""How every parameter starts, in one place.

| parameter                       | start                                                       |
| ------------------------------- | ----------------------------------------------------------- |
| weights of linear layers        | normal, `std` (0.02)                                        |
| last linear of both branches    | zero if `zero_branches`: each block starts as the identity  |
| patch projection                | normal, 1/sqrt(pixels in a patch), or `std` if given        |
| tokens, positions, pool's query | normal, 0.02                                                |
| norms                           | weight one, bias zero                                       |
| biases                          | zero                                                        |
| LayerScale                      | the config's number                                         |
"""

from torch import nn

from vitrail.model.block import LayerScale


def initialize(
    vit: nn.Module,
    *,
    std: float = 0.02,
    patch_std: float | None = None,
    zero_branches: bool = False,
) -> None:
    """Gives every parameter of a ViT its start, from torch's global generator."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.start)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=patch_std or module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in vit.named_parameters():
        if name in ("prefix", "position.grid", "pool.query"):
            nn.init.trunc_normal_(parameter, std=0.02)
        if zero_branches and name.startswith("blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            nn.init.zeros_(parameter)
