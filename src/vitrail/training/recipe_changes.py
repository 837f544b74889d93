"""The types of the changes of a recipe. Made by tools/recipe_changes.py: do not edit."""

from typing import Literal, TypedDict

from vitrail.model.config import Learned, NoPosition, Rotary, SinCos


class ModelChanges(TypedDict, total=False):
    """The fields of `ViTConfig` that a recipe may set: `Recipe.model`."""

    width: int
    """length of a token (hidden size)"""
    depth: int
    """number of blocks"""
    heads: int
    """attention heads per block"""
    mlp_width: int
    """hidden width of a block's MLP"""
    patch: int
    """patch size in pixels"""
    image_size: int | tuple[int, int]
    """image size in pixels: one number, or HEIGHTxWIDTH"""
    prefix_tokens: int
    """tokens before the patches: class token and registers"""
    position: Learned | SinCos | Rotary | NoPosition | Literal["learned", "sincos", "rotary", "none"] | str
    """position embedding"""
    pre_norm: bool
    """a norm before the first block, as in CLIP"""
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] | str
    """activation of the MLP"""
    qkv_bias: bool
    """a bias on queries, keys and values"""
    qk_norm: bool
    """normalize queries and keys"""
    layer_scale: float | None
    """initial value of LayerScale; none: no LayerScale"""
    final_norm: bool
    """a norm after the last block"""
    norm_eps: float
    """epsilon of the norms"""
    pool: Literal["cls", "cls+dist", "mean", "mean_norm", "cls+mean", "map"] | str
    """cls: class token; mean: mean of the patches; mean_norm: mean, then a norm; map: attention pooling; cls+mean:
    both, concatenated; cls+dist: class and distillation token, concatenated"""
    head: Literal["linear", "mlp"] | str
    """classification head"""
    dropout: float
    """dropout after projections and in the MLP"""
    attention_dropout: float
    """dropout of the attention weights"""
    embedding_dropout: float
    """dropout of the embedded tokens"""
    drop_path: float
    """stochastic depth: drop rate of the last block's branches"""


class TrainChanges(ModelChanges, total=False):
    """The fields of a recipe that `train` takes as keywords besides its own, `architecture` and `loss`."""

    size: Literal["Ti", "S", "B", "L", "So400m", "H", "g"]
    """named model size: sets width, depth, heads and mlp_width"""
    flip: float
    """probability of a horizontal flip"""
    crop: Literal["none", "resized", "padded"]
    """random crop; resized: a part of the image; padded: a window of the padded image"""
    crop_scale: float
    """minimum fraction of the area that a resized crop keeps"""
    crop_padding: float
    """padding of a padded crop, as a fraction of the image size"""
    policy: Literal["none", "randaugment", "trivialaugment"] | str
    """automatic augmentation: random changes of color and shape"""
    policy_ops: int
    """operations per image in RandAugment"""
    policy_magnitude: int
    """magnitude of RandAugment's operations, 0 to 30"""
    random_erasing: float
    """probability of erasing a random rectangle"""
    mixup: float
    """alpha of MixUp; 0: off"""
    cutmix: float
    """alpha of CutMix; 0: off"""
    seed: int
    """seed of the initial weights, the order of images and the augmentation"""
    epochs: int | None
    """passes over the training images; none: chosen from the number of training images"""
    patience: int | None
    """stop after this number of epochs without a better validation score; none: train for all epochs"""
    batch_size: int | None
    """images per step; none: chosen from the number of training images"""
    accumulation_steps: int
    """micro-batches that a batch is split into, to save memory (gradient accumulation)"""
    optimizer: Literal["adamw", "sgd", "muon"] | str
    """optimizer"""
    lr: float | None
    """peak learning rate of AdamW or SGD; with Muon only of embeddings, norms, biases and head, not of the blocks'
    matrices (muon_lr); none: for pretrained weights, chosen from the number of steps"""
    muon_lr: float
    """peak learning rate of Muon, for the matrices of the blocks (most weights)"""
    weight_decay: float
    """weight decay"""
    weight_decay_on: Literal["matrices", "all"]
    """parameters that decay: matrices (no norms, biases, tokens or positions), or all"""
    momentum: float
    """momentum of SGD"""
    muon_momentum: float
    """momentum of Muon"""
    schedule: Literal["cosine", "linear", "constant"] | str
    """learning rate schedule after the warmup"""
    warmup_fraction: float
    """fraction of all steps in which the learning rate rises to its peak"""
    min_warmup_steps: int
    """the warmup takes at least this number of steps, but at most half of all steps"""
    task: Literal["single_label", "multi_label", "grades", "regression"] | None
    """single_label (one class per image), multi_label (several), grades (ordered classes) or regression (numbers);
    none: chosen from the data"""
    balance: Literal["none", "weights", "sampler", "logits"]
    """what to do about classes of unequal size; weights: weight the classes in the loss; sampler: draw equally many
    images of each class; logits: shift the logits by the class frequencies in the loss"""
    balance_strength: float
    """strength of balance; 1: all classes count alike; 0.5: each by the square root of its size"""
    distillation: Literal["soft", "hard", "features"] | None
    """what a student learns from its teacher (--teacher); soft: its probabilities or numbers; hard: its most probable
    class, or its labels; features: its pooled vectors; none: soft, or features if the teacher has no classes"""
    teacher_weight: float
    """share of the teacher in the loss; the rest is of the labels"""
    teacher_temperature: float
    """temperature of the probabilities of teacher and student"""
    teacher_sees: Literal["image", "batch"] | None
    """image: the teacher answers once for each image, without augmentation; batch: it answers in each step for the
    augmented images; none: image, or batch if images are mixed"""
    max_grad_norm: float | None
    """maximum gradient norm, or none for no clipping"""
    label_smoothing: float
    """fraction of the target that goes to all classes"""
    ema_decay: float | None
    """decay of the EMA weights, or none for no averaging"""
    initial_image_scale: float
    """image size at the first step, as a fraction of the full size (progressive resizing)"""
    image_growth_fraction: float
    """fraction of all steps after which images have their full size"""
    zero_init_residual: bool
    """zero-init residual branches: each block starts as the identity"""
    patch_init_std: float | None
    """standard deviation of the initial patch projection; none: from its fan-in"""
    precision: Literal["auto", "fp32", "bf16"]
    """number format of the forward pass; auto: bf16 where the device computes it natively"""
    gradient_checkpointing: bool
    """recompute activations in the backward pass: less memory, more time"""
    normalize: Literal["half", "imagenet", "data"] | None
    """mean and std of the pixels; none: the model's, else measured on the training images"""
    shown_channels: str | None
    """which channels pictures of bands show, one or three, counted from 1: 4,3,2; none: the first ones"""
    fit: Literal["pad", "crop", "stretch"] | None
    """how images of another aspect ratio are fitted; none: the model's, else pad"""
    interpolation: Literal["bilinear", "bicubic"] | None
    """interpolation of resizing; none: the model's, else bilinear"""
    crop_fraction: float | None
    """fraction of the resized image that the center crop keeps; none: the model's, else 1"""
    train_on: Literal["images", "features"]
    """images, or features: compute features once and fit a linear head on them"""
    probe_l2: float | None
    """L2 penalty of a head fitted on features; none: the best on validation"""
    layer_decay: float
    """learning rate of a block, as a fraction of the next block's"""
    freeze: int | str | tuple[str, ...]
    """what to freeze: the first COUNT blocks; backbone; or patterns of names of parameters or modules, such as
    'patch_embed blocks.*.attn'"""
    head_init: Literal["random", "probe"]
    """initial weights of a new head: random, or those of a linear probe"""
    lora_rank: int | None
    """rank of LoRA updates; none: no LoRA"""
    lora_alpha: float
    """LoRA updates are scaled by lora_alpha / lora_rank"""
    lora_dropout: float
    """dropout before LoRA updates"""
    lora_target: Literal["qkv", "attention", "blocks"]
    """matrices of the blocks that LoRA updates"""
    validation_fraction: float
    """fraction of the training images held out for validation, where the data has no such split"""
    test_fraction: float
    """fraction of the images held out for test, where the data has no such split"""
    group_pattern: str | None
    """regular expression with one capture group, which finds the group of an image in its path below DATA; groups
    (patients, videos, bursts) are never divided; none: the groups that the data has"""
    split_seed: int
    """seed of the random split into training, validation and test"""
    image_cache_gib: float
    """memory for decoded images, in GiB"""
    workers: int | None
    """data-loading processes; none: chosen from the data and the CPU cores"""
    skip_unreadable: bool
    """skip and count images that cannot be read, instead of stopping"""


class RecipeChanges(TrainChanges, total=False):
    """The fields of a recipe that its user may set: its own, those of its augmentation and those of its model."""

    architecture: Literal["vit"] | str
    """model to train: a ViT, or one that a plugin builds"""
    loss: (
        Literal[
            "cross_entropy",
            "binary_cross_entropy",
            "focal",
            "asymmetric",
            "cumulative",
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
        ]
        | str
        | None
    )
    """training loss; none: cross_entropy, binary_cross_entropy with several labels per image, mse_loss for numbers;
    cross_entropy:class_weights=balanced is the same as balance weights"""
