"""The data of a run: opened, checked, without unreadable images, and in memory if they fit."""

from dataclasses import dataclass, field, replace

from vitrail.data.check import CheckReport, check_before_training
from vitrail.data.images import Images
from vitrail.data.open import open_source
from vitrail.data.python_data import Data
from vitrail.data.split import Splits, build_splits, drop_images, load_splits_into_memory
from vitrail.data.unlabeled import join_images
from vitrail.errors import VitrailError
from vitrail.machine import GIB
from vitrail.runs.folder import RunFolder, Unreadable
from vitrail.runs.module_start import GivenModule
from vitrail.runs.pretrained import Pretrained
from vitrail.tasks import TASKS
from vitrail.training.distributed import World
from vitrail.training.recipe import Recipe


@dataclass(frozen=True)
class RunData:
    """What a run trains on."""

    splits: Splits
    address: str = ""  # of the data
    unreadable: Unreadable = field(default_factory=dict)  # images that the splits are without
    report: CheckReport | None = None  # of the data check, on the main process
    unlabeled: Images | None = None  # training images for a teacher
    unlabeled_digest: str | None = None

    def training_images(self) -> Images:
        """Returns the labeled training images and then the unlabeled ones."""
        return join_images(self.splits.train, self.unlabeled) if self.unlabeled else self.splits.train


def load_data(
    data: Data,
    recipe: Recipe,
    world: World,
    *,
    pretrained: Pretrained | GivenModule | None = None,
    resumed: RunFolder | None = None,
    check: bool = True,
    score_test: bool = True,
) -> RunData:
    """Opens the data, checks them on the main process, drops unreadable images and decodes the rest into memory.

    Pretrained weights decide the channels of 8-bit gray and color images. A resumed run drops what it was started
    without. Raises `VitrailError` for errors in the data, and if a resumed run was started on other data.
    """
    theirs = pretrained.classifier.preprocess if isinstance(pretrained, Pretrained) else None
    started = resumed.load_config() if resumed else None
    with world.raise_on_all(), world.local_main_first():
        source = open_source(
            data, missing_ok=recipe.skip_unreadable, task=recipe.task, group_pattern=recipe.group_pattern
        )
        for feature, is_wanted in (
            (f"balance={recipe.balance}", recipe.balance != "none"),
            ("module", not recipe.is_vit),
        ):
            if is_wanted:
                TASKS[source.task].refuse(feature)
        splits = build_splits(
            source.with_channels(theirs.source_channels) if theirs and not source.has_bands else source,
            validation=recipe.validation_fraction,
            test=recipe.test_fraction,
            split_seed=recipe.split_seed,
        )
        if resumed and started and splits.fingerprint != started.fingerprint:
            raise VitrailError(
                f"the data are not those that {resumed.path} was started on",
                "resume on the same files, or start a new run on these",
            )
    report = None
    with world.raise_on_all():
        if check and world.is_main:
            report = check_before_training(
                source,
                batch_size=recipe.batch_size,
                fit=recipe.fit or (theirs.fit if theirs else "pad"),
                skip_unreadable=recipe.skip_unreadable,
            )
    of_processes = world.all_gather((splits.fingerprint, report.skippable if report else {}))
    if len({fingerprint for fingerprint, _ in of_processes}) > 1:
        raise VitrailError("the processes have different data", "give all of them the same images in the same order")
    unreadable = started.unreadable if started else of_processes[0][1]
    with world.raise_on_all():
        splits = drop_images(splits if score_test else replace(splits, test=None), unreadable)
        max_bytes = int(recipe.image_cache_gib * GIB) // world.local_size
        splits = load_splits_into_memory(splits, max_bytes, recipe.skip_unreadable)
    return RunData(splits, source.address, unreadable, report)
