"""The public families as tiny random models of the libraries they come from: how to build, run and save each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import scipy.ndimage
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers as hf
from safetensors.torch import load_file, save_file
from tools.timm_cards import read_timm_model
from torch import Tensor, nn

from vitrail.model.config import ViTConfig
from vitrail.weights.config_files import parse_config
from vitrail.weights.conversion import export_weights, import_weights
from vitrail.weights.layouts import LAYOUTS

hf.utils.logging.set_verbosity_error()
hf.utils.logging.disable_progress_bar()
SIZES = {"native": (32, 32), "larger": (48, 48), "smaller": (16, 16), "wide": (24, 40)}
TINY_TIMM = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, dynamic_img_size=True)
TINY_HF = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
)
TINY_DINOV2 = {key: value for key, value in TINY_HF.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
TINY_TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=99)
NAMES = {"id2label": dict(enumerate(["ant", "bee", "cat", "dog", "elk"]))}


@dataclass
class Case:
    """A family: how the reference library builds, runs and saves a model, and how vitrail gets its config."""

    layout: str
    reference: str  # the libraries whose code runs
    build_model: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Tensor]
    read_config: Callable[[nn.Module, Path], ViTConfig]
    save: Callable[[nn.Module, Path], Path]
    sizes: tuple[str, ...] = ("native", "larger", "smaller", "wide")
    resize_dtype: str = "float64"  # the precision in which the reference resizes positions, or "rotary" for rotary ones


def run_model(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def save_state_dict(model: nn.Module, folder: Path) -> Path:
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    return folder / "model.safetensors"


def save_pretrained(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


# torchvision


def build_torchvision(size: int = 32) -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=size, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )


def run_torchvision(model: nn.Module, x: Tensor) -> Tensor:
    """Runs the model, at another size through torchvision's helper, which has square images only."""
    if x.shape[-1] == model.image_size:
        return model(x)
    from torchvision.models.vision_transformer import interpolate_embeddings

    resized = build_torchvision(x.shape[-1]).double().eval()
    resized.load_state_dict(interpolate_embeddings(x.shape[-1], 8, model.state_dict()))
    return resized(x)


def make_torchvision_config(model: nn.Module, folder: Path) -> ViTConfig:
    return ViTConfig(
        width=32,
        depth=3,
        heads=4,
        mlp_width=64,
        patch=8,
        image_size=32,
        classes=5,
        position=LAYOUTS["torchvision"].position,
    )


def save_published_names(model: nn.Module, folder: Path) -> Path:
    """Saves the MLP under the names of the published files, which torchvision itself must still load."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        published = name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
        tensors[published] = tensor.clone()
    path = folder / "published.safetensors"
    save_file(tensors, path)
    build_torchvision().double().load_state_dict(load_file(path))
    return path


# timm


def make_timm_case(layout: str, architecture: str, resize_dtype: str = "float32", **options: object) -> Case:
    def build() -> nn.Module:
        return timm.create_model(architecture, **{**TINY_TIMM, "num_classes": 5, **options})

    def read_config(model: nn.Module, folder: Path) -> ViTConfig:
        model_layout, config = read_timm_model(model)
        assert model_layout == layout
        return config

    return Case(layout, "timm", build, run_model, read_config, save_state_dict, resize_dtype=resize_dtype)


# transformers


def read_hub_config(model: nn.Module, folder: Path) -> ViTConfig:
    import json

    return parse_config(json.loads((folder / "config.json").read_text()), folder).config


def make_hf_case(
    layout: str, make: Callable[[], nn.Module], answer: Callable[[nn.Module, Tensor], Tensor], **more: object
) -> Case:
    return Case(layout, "transformers", make, answer, read_hub_config, save_pretrained, **more)


def run_class_token(model: nn.Module, x: Tensor) -> Tensor:
    return model(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]


def run_dinov2(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).last_hidden_state[:, 0]


def run_logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x, interpolate_pos_encoding=True).logits


def run_mae(model: nn.Module, x: Tensor) -> Tensor:
    """Runs the encoder without masking: the noise keeps the patches in order."""
    patches = (x.shape[-2] // 8) * (x.shape[-1] // 8)
    noise = torch.arange(patches, dtype=x.dtype).expand(len(x), -1)
    return model(x, noise=noise, interpolate_pos_encoding=True).last_hidden_state[:, 0]


def run_mae_encoder(model: nn.Module, x: Tensor) -> Tensor:
    return run_mae(model.vit, x)


CLIP = hf.CLIPConfig(text_config=TINY_TEXT, vision_config=TINY_HF, projection_dim=16)
SIGLIP = hf.SiglipConfig(text_config=TINY_TEXT, vision_config=TINY_HF)

# Google's .npz, written with the names of vit_jax and read back by timm


def build_google() -> nn.Module:
    return timm.create_model("vit_base_patch16_224", **{**TINY_TIMM, "num_classes": 5})


def save_npz(model: nn.Module, folder: Path) -> Path:
    """Saves the model's weights under Google's names; timm must read the file back as this model."""
    _, config = read_timm_model(model)
    ours = import_weights(LAYOUTS["timm"], "", config, model.state_dict())
    theirs = export_weights(LAYOUTS["google"], "", config, ours)
    np.savez(folder / "google.npz", **{name: tensor.numpy() for name, tensor in theirs.items()})
    reloaded = build_google().double()
    reloaded.load_pretrained(folder / "google.npz")
    with torch.no_grad():  # in the file the class token's position is zero: it was added to the token
        model.cls_token += model.pos_embed[:, :1]
        model.pos_embed[:, :1] = 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name
    return folder / "google.npz"


def make_google_config(model: nn.Module, folder: Path) -> ViTConfig:
    _, config = read_timm_model(model)
    return replace(config, position=LAYOUTS["google"].position)


def run_google(model: nn.Module, x: Tensor) -> Tensor:
    """Runs the model, at another size with positions resized as in vit_jax: scipy.ndimage.zoom, order 1."""
    grid = (x.shape[-2] // 8, x.shape[-1] // 8)
    if grid == (4, 4):
        return model(x)
    table = model.pos_embed[0, 1:].detach().reshape(4, 4, -1).numpy()
    zoomed = torch.from_numpy(scipy.ndimage.zoom(table, (grid[0] / 4, grid[1] / 4, 1), order=1))
    patches = model.patch_embed.proj(x).flatten(2).mT + zoomed.flatten(0, 1)
    tokens = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1), patches], dim=1)
    return model.head(model.norm(model.blocks(tokens))[:, 0])


# Meta's original files of DINO, DeiT, MAE and DINOv2, written with their names and read back by timm's converters


def make_meta_case(layout: str, architecture: str, classes: int = 0) -> Case:
    position = LAYOUTS[layout].position
    has_mask_token = layout in ("dinov2", "dinov2-registers")
    is_wrapped = layout in ("deit", "deit-distilled", "deit3")  # saved under the key "model"

    def build() -> nn.Module:
        return timm.create_model(architecture, **{**TINY_TIMM, "num_classes": classes, "global_pool": "token"})

    def read_config(model: nn.Module, folder: Path) -> ViTConfig:
        _, config = read_timm_model(model)
        return replace(config, position=position)

    def save(model: nn.Module, folder: Path) -> Path:
        timm_layout, config = read_timm_model(model)
        ours = import_weights(LAYOUTS[timm_layout], "", config, model.state_dict())
        theirs = export_weights(LAYOUTS[layout], "", config, ours)
        if has_mask_token:
            theirs["mask_token"] = torch.zeros(1, config.width)
        torch.save({"model": theirs} if is_wrapped else theirs, folder / "model.pth")
        reloaded = build().double()
        timm.models.load_checkpoint(reloaded, str(folder / "model.pth"), filter_fn=get_timm_filter(reloaded))
        x = random_images(SIZES["native"])
        assert (reloaded.eval()(x) - model(x)).abs().max() < 1e-9  # timm reads our file as this model
        return folder / "model.pth"

    def run(model: nn.Module, x: Tensor) -> Tensor:
        """Runs the model with positions resized as in Meta's code, in float64."""
        grid = (x.shape[-2] // 8, x.shape[-1] // 8)
        if grid == (4, 4):
            return model(x)
        prefix_rows = model.pos_embed.shape[1] - 16
        table = model.pos_embed[:, prefix_rows:].detach().reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        target = {"scale_factor": tuple((length + 0.1) / 4 for length in grid)} if position.offset else {"size": grid}
        resized = F.interpolate(table, mode="bicubic", antialias=position.antialias, **target)
        prefix = [model.cls_token + model.pos_embed[:, :1] if prefix_rows else model.cls_token]
        if getattr(model, "dist_token", None) is not None:
            prefix.append(model.dist_token + model.pos_embed[:, 1:2])
        if model.reg_token is not None:
            prefix.append(model.reg_token)
        patches = model.patch_embed.proj(x).flatten(2).mT + resized.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), patches], dim=1)
        return model.forward_head(model.norm(model.blocks(tokens)))

    return Case(layout, "timm, torch", build, run, read_config, save)


def get_timm_filter(model: nn.Module) -> Callable:
    from timm.models.deit import checkpoint_filter_fn as deit
    from timm.models.vision_transformer import checkpoint_filter_fn as vit

    if type(model).__module__.endswith("deit"):
        return deit
    return partial(vit, adapt_layer_scale=True)


# OpenAI's CLIP, as open_clip has it


def build_open_clip() -> nn.Module:
    vision = dict(image_size=32, layers=3, width=32, head_width=8, patch_size=8, mlp_ratio=2.0)
    text = dict(context_length=8, vocab_size=99, width=32, heads=4, layers=1)
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True)


def save_torchscript(model: nn.Module, folder: Path) -> Path:
    """Saves an archive like OpenAI's: a traced program with its parameters."""
    text = torch.zeros(1, 8, dtype=torch.long)
    traced = torch.jit.trace_module(model, {"forward": (random_images((32, 32)), text)}, check_trace=False)
    traced.save(str(folder / "model.pt"))
    return folder / "model.pt"


def make_clip_config(model: nn.Module, folder: Path) -> ViTConfig:
    return ViTConfig(
        width=32,
        depth=3,
        heads=4,
        mlp_width=64,
        patch=8,
        image_size=32,
        classes=16,
        pre_norm=True,
        mlp="quick_gelu",
        norm_eps=1e-5,
    )


CASES = {
    "torchvision": Case(
        "torchvision",
        "torchvision",
        build_torchvision,
        run_torchvision,
        make_torchvision_config,
        save_state_dict,
        ("native", "larger", "smaller"),
    ),
    "torchvision, as published": Case(
        "torchvision-published",
        "torchvision",
        build_torchvision,
        run_model,
        make_torchvision_config,
        save_published_names,
        ("native",),
    ),
    "Google ViT and AugReg (.npz)": Case(
        "google", "timm, scipy", build_google, run_google, make_google_config, save_npz
    ),
    "timm AugReg": make_timm_case("timm", "vit_base_patch16_224"),
    "timm DeiT": make_timm_case("timm", "deit_base_patch16_224"),
    "timm DeiT distilled": make_timm_case("timm-distilled", "deit_base_distilled_patch16_224"),
    "timm DeiT-III": make_timm_case("timm-deit3", "deit3_base_patch16_224"),
    "timm MAE encoder": make_timm_case("timm", "vit_base_patch16_224", num_classes=0, global_pool="token"),
    "timm MAE fine-tuned": make_timm_case("timm", "vit_base_patch16_224", global_pool="avg"),
    "timm CLIP": make_timm_case("timm-clip", "vit_base_patch16_clip_224"),
    "timm CLIP, OpenAI's GELU": make_timm_case("timm-clip", "vit_base_patch16_clip_quickgelu_224"),
    "timm SigLIP": make_timm_case("timm-siglip", "vit_base_patch16_siglip_224", num_classes=0),
    "timm SigLIP, mean pooling": make_timm_case("timm-mean", "vit_base_patch16_siglip_gap_224", num_classes=0),
    "timm DINOv2": make_timm_case("timm", "vit_small_patch14_dinov2", num_classes=0),
    "timm DINOv2 + registers": make_timm_case("timm-registers", "vit_small_patch14_reg4_dinov2", num_classes=0),
    "timm DINOv2 giant": make_timm_case("timm", "vit_giant_patch14_dinov2", num_classes=0),
    "timm DINOv3": make_timm_case("timm-dinov3", "vit_small_patch16_dinov3", "rotary", num_classes=0),
    "timm DINOv3, biased": make_timm_case("timm-dinov3-bias", "vit_small_patch16_dinov3_qkvb", "rotary", num_classes=0),
    "timm DINOv3 plus": make_timm_case("timm-dinov3", "vit_small_plus_patch16_dinov3", "rotary", num_classes=0),
    "timm ViT, registers, mean": make_timm_case("timm-registers-alone", "vit_little_patch16_reg4_gap_256"),
    "timm ViT, mean": make_timm_case("timm-mean", "vit_medium_patch16_gap_240"),
    "timm ViT, q and k normed": make_timm_case("timm", "vit_base_patch16_224", qk_norm=True),
    "Meta DINO": make_meta_case("dino", "vit_small_patch16_224"),
    "Meta DeiT": make_meta_case("deit", "deit_base_patch16_224", 5),
    "Meta DeiT distilled": make_meta_case("deit-distilled", "deit_base_distilled_patch16_224", 5),
    "Meta DeiT-III": make_meta_case("deit3", "deit3_base_patch16_224", 5),
    "Meta MAE": make_meta_case("mae", "vit_base_patch16_224"),
    "Meta DINOv2": make_meta_case("dinov2", "vit_small_patch14_dinov2"),
    "Meta DINOv2 + registers": make_meta_case("dinov2-registers", "vit_small_patch14_reg4_dinov2"),
    "Meta DINOv2 giant": make_meta_case("dinov2", "vit_giant_patch14_dinov2"),
    "transformers ViT": make_hf_case(
        "hf-vit", lambda: hf.ViTForImageClassification(hf.ViTConfig(**TINY_HF, **NAMES)), run_logits
    ),
    "transformers ViT, backbone": make_hf_case("hf-vit", lambda: hf.ViTModel(hf.ViTConfig(**TINY_HF)), run_class_token),
    "transformers DeiT": make_hf_case(
        "hf-deit", lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**TINY_HF, **NAMES)), run_logits
    ),
    "transformers DeiT, two heads": make_hf_case(
        "hf-deit-distilled",
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**TINY_HF, **NAMES)),
        run_logits,
    ),
    "transformers DINOv2": make_hf_case(
        "hf-dinov2", lambda: hf.Dinov2Model(hf.Dinov2Config(**TINY_DINOV2)), run_dinov2, resize_dtype="float32"
    ),
    "transformers DINOv2 giant": make_hf_case(
        "hf-dinov2",
        lambda: hf.Dinov2Model(hf.Dinov2Config(**TINY_DINOV2, use_swiglu_ffn=True)),
        run_dinov2,
        resize_dtype="float32",
    ),
    "transformers DINOv2, linear head": make_hf_case(
        "hf-dinov2",
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**TINY_DINOV2, **NAMES)),
        lambda model, x: model(x).logits,
        resize_dtype="float32",
    ),
    "transformers DINOv2 + registers": make_hf_case(
        "hf-dinov2-registers",
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**TINY_DINOV2)),
        run_dinov2,
        resize_dtype="float32",
    ),
    "transformers DINOv2 + registers, linear head": make_hf_case(
        "hf-dinov2-registers",
        lambda: hf.Dinov2WithRegistersForImageClassification(hf.Dinov2WithRegistersConfig(**TINY_DINOV2, **NAMES)),
        lambda model, x: model(x).logits,
        resize_dtype="float32",
    ),
    "transformers DINOv3": make_hf_case(
        "hf-dinov3",
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**TINY_HF, num_register_tokens=4)),
        run_dinov2,
        resize_dtype="rotary",
    ),
    "transformers DINOv3 plus": make_hf_case(
        "hf-dinov3",
        lambda: hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(**TINY_HF, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu")
        ),
        run_dinov2,
        resize_dtype="rotary",
    ),
    "transformers DINOv3 7B": make_hf_case(
        "hf-dinov3",
        lambda: hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(
                **TINY_HF,
                num_register_tokens=4,
                query_bias=False,
                value_bias=False,
                use_gated_mlp=True,
                hidden_act="silu",
            )
        ),
        run_dinov2,
        resize_dtype="rotary",
    ),
    "transformers CLIP": make_hf_case(
        "hf-clip",
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**TINY_HF)),
        lambda model, x: model(x, interpolate_pos_encoding=True).pooler_output,
    ),
    "transformers CLIP, projected": make_hf_case(
        "hf-clip",
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**TINY_HF, projection_dim=16)),
        lambda model, x: model(x, interpolate_pos_encoding=True).image_embeds,
    ),
    "transformers CLIP, both towers": make_hf_case(
        "hf-clip",
        lambda: hf.CLIPModel(CLIP),
        lambda model, x: model.visual_projection(model.vision_model(x, interpolate_pos_encoding=True).pooler_output),
    ),
    "transformers CLIP, classifier": make_hf_case(
        "hf-clip-classifier",
        lambda: hf.CLIPForImageClassification(hf.CLIPConfig(text_config=TINY_TEXT, vision_config=TINY_HF, **NAMES)),
        lambda model, x: model(x).logits,
        sizes=("native",),
    ),
    "transformers SigLIP": make_hf_case(
        "hf-siglip",
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**TINY_HF)),
        lambda model, x: model(x, interpolate_pos_encoding=True).pooler_output,
    ),
    "transformers SigLIP, both towers": make_hf_case(
        "hf-siglip",
        lambda: hf.SiglipModel(SIGLIP),
        lambda model, x: model.vision_model(x, interpolate_pos_encoding=True).pooler_output,
    ),
    "transformers SigLIP, classifier": make_hf_case(
        "hf-siglip-classifier",
        lambda: hf.SiglipForImageClassification(hf.SiglipConfig(text_config=TINY_TEXT, vision_config=TINY_HF, **NAMES)),
        run_logits,
    ),
    "transformers ViT-MAE": make_hf_case(
        "hf-vit", lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**TINY_HF, mask_ratio=0.0)), run_mae
    ),
    "transformers ViT-MAE with its decoder": make_hf_case(
        "hf-vit",
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **TINY_HF,
                mask_ratio=0.0,
                decoder_hidden_size=32,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=4,
                decoder_intermediate_size=32,
            )
        ),
        run_mae_encoder,
    ),
    "OpenAI CLIP, as published (TorchScript)": Case(
        "openai-clip",
        "open_clip",
        build_open_clip,
        lambda model, x: model.encode_image(x),
        make_clip_config,
        save_torchscript,
        ("native",),
    ),
    "OpenAI CLIP": Case(
        "openai-clip",
        "open_clip",
        build_open_clip,
        lambda model, x: model.encode_image(x),
        make_clip_config,
        save_state_dict,
        ("native",),
    ),
}


def randomize_parameters(model: nn.Module) -> nn.Module:
    """Adds noise to every parameter, so that no initial value hides an error, and returns the model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model


def random_images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
