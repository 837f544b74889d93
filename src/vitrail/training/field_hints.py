"""What to do instead, for options of other libraries that a recipe does not have."""

CLASS_WEIGHTS = 'use balance="weights"'
TRANSFORM = "set flip, crop or policy, or use vitrail.train(augment=FUNCTION), which gets each image as uint8 (C, H, W)"
EARLY_STOP = "use patience=N, or callbacks=[vitrail.EarlyStopping(patience=N)]"
CALLBACKS = "use callbacks=[...], a list of objects with hooks such as on_epoch_end"
LOSS = "use loss=FUNCTION, called as FUNCTION(logits, targets)"
SAMPLE_WEIGHTS = f"images have no weights of their own; for classes {CLASS_WEIGHTS}"
ONE_LABEL = 'use task="multi_label"; the data mostly decide it (docs/data.md)'
METRICS = "use vitrail.evaluate(run.classifier, data, metrics=[...])"

ONLY_TRAIN = "vitrail.train takes it; trials of a sweep run in processes of their own: read OUT/trials/*/metrics.jsonl"
NAMED_PART = "vitrail.train takes it; in a recipe or a sweep register it, and set policy to its name"

FIELD_HINTS: dict[str, str] = {
    **dict.fromkeys(("class_weight", "class_weights"), CLASS_WEIGHTS),
    **dict.fromkeys(("sample_weight", "sample_weights"), SAMPLE_WEIGHTS),
    **dict.fromkeys(("augmentation", "transform", "transforms"), TRANSFORM),
    **dict.fromkeys(("early_stop", "early_stopping"), EARLY_STOP),
    **dict.fromkeys(("callback", "watcher", "watchers"), CALLBACKS),
    **dict.fromkeys(("criterion", "loss_fn"), LOSS),
    **dict.fromkeys(("metric", "metrics"), METRICS),
    **dict.fromkeys(("multi_label", "multilabel", "problem_type"), ONE_LABEL),
    **dict.fromkeys(("callbacks", "logger", "loggers", "tensorboard", "wandb", "mlflow"), ONLY_TRAIN),
    "augment": NAMED_PART,
    "learning_rate": "use lr",
    "num_epochs": "use epochs",
    "num_train_epochs": "use epochs",
}
