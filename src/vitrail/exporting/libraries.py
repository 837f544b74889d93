"""Exports a classifier as a folder that timm, transformers or torchvision loads with the same outputs.

The folder is written to a temporary path, read back by the library and compared before it gets its name.
"""

import filecmp
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.comparison import Comparison, compare
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.export_documents import LibraryComparison, LibraryDocument
from vitrail.exporting.library_format import Library, LibraryModel, fold_outputs, with_learned_positions
from vitrail.exporting.model_card import write_model_card
from vitrail.exporting.sample_photos import read_sample_photos
from vitrail.exporting.timm_format import convert_to_timm, load_with_timm
from vitrail.exporting.torchvision_format import convert_to_torchvision, load_with_torchvision
from vitrail.exporting.transformers_format import convert_to_transformers, load_with_transformers
from vitrail.files import write_folder_atomically, write_json, write_text
from vitrail.weights.config_json import model_parts

NOISE_IMAGES = 8
SHOWN_FOLDER = "path/to/folder"  # in a model card
LIBRARIES: dict[str, Library] = {  # by the name of the format
    "timm": Library("timm", convert_to_timm, load_with_timm, "1.0.20"),
    "hf": Library("transformers", convert_to_transformers, load_with_transformers, "4.40"),
    "torchvision": Library("torchvision", convert_to_torchvision, load_with_torchvision),
}


@dataclass(frozen=True)
class ExportedLibrary:
    """The folder that was written, and how its outputs compare; no comparison if the library is not installed."""

    folder: Path
    format: str
    load_code: str
    comparison: LibraryComparison | None
    note: str = ""  # what differs in the library, or ""

    @property
    def reason_not_compared(self) -> str | None:
        return None if self.comparison else f"{LIBRARIES[self.format].package} is not installed here"

    def to_json(self) -> LibraryDocument:
        """Returns the result as the command line prints it."""
        none: LibraryComparison = {"compared_on": None, "max_difference": None, "agreement": None, "images": 0}
        comparison = self.comparison or none
        document: LibraryDocument = {
            "file": str(self.folder),
            "format": self.format,
            "load_code": self.load_code,
            "note": self.note or None,
            "compared_on": comparison["compared_on"],
            "max_difference": comparison["max_difference"],
            "agreement": comparison["agreement"],
            "images": comparison["images"],
        }
        if self.comparison is None:
            document["not_compared"] = self.reason_not_compared
        return document


def export_library(classifier: Classifier, format: str, out: str | Path) -> ExportedLibrary:
    """Writes the folder `out` for timm, transformers (`hf`) or torchvision.

    If the library is not installed, the folder is written without a comparison, which its model card states. Raises
    `UsageError` if `out` exists or the library has no such ViT, `VitrailError` if its outputs differ.
    """
    if format not in LIBRARIES:
        raise UsageError(f"there is no format {format!r}", did_you_mean(format, LIBRARIES))
    library, folder = LIBRARIES[format], Path(out)
    with write_folder_atomically(folder) as temporary:
        model = convert_classifier(classifier, library)
        save_file(model.tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        for name, document in model.files.items():
            write_json(temporary / name, document)
        comparison = verify_folder(classifier, library, temporary)
        load_code = model.load_code.format(folder=SHOWN_FOLDER)  # the card may be published: no path of this machine
        card = write_model_card(classifier, library.package, load_code, comparison, model.note, oldest=library.oldest)
        write_text(temporary / "README.md", card)
    return ExportedLibrary(folder, format, model.load_code.format(folder=folder), comparison, model.note)


def export_again(classifier: Classifier, format: str, out: str | Path) -> ExportedLibrary:
    """Returns the export that `out` holds already, after a check that it is the same; raises `UsageError` otherwise."""
    folder = Path(out)
    with tempfile.TemporaryDirectory() as temporary:
        exported = export_library(classifier, format, Path(temporary) / "export")
        names = [path.name for path in exported.folder.iterdir() if path.name != "README.md"]  # which people edit
        _, different, missing = filecmp.cmpfiles(exported.folder, folder, names, shallow=False)
    if different or missing:
        raise UsageError(f"{folder} already exists and holds something else", "choose another --out")
    load_code = exported.load_code.replace(str(exported.folder), str(folder))
    return replace(exported, folder=folder, load_code=load_code)


def convert_classifier(classifier: Classifier, library: Library) -> LibraryModel:
    """Returns the classifier in the library's terms; raises `VitrailError` naming what it cannot express."""
    for part in model_parts(classifier.vit.config):
        raise UsageError(f"{library.package} has no {part['kind']} {part['name']!r}", "export it as onnx or torch")
    config, state = with_learned_positions(classifier.vit)
    model = library.convert(classifier, config, fold_outputs(state, classifier))
    return replace(model, tensors={name: tensor.cpu().clone() for name, tensor in model.tensors.items()})


# Verification


def verify_folder(classifier: Classifier, library: Library, folder: Path) -> LibraryComparison | None:
    """Compares the library's outputs for a folder with the classifier's; None if the library is not installed.

    Raises `VitrailError` if they differ by more than the tolerance of `compare`.
    """
    try:
        run = library.load(folder).run
    except ImportError:
        return None
    images = make_probe_images(classifier)
    comparison = compare(
        lambda x: run_classifier(classifier, x), lambda x: run(x).float(), [images], name=library.package
    )
    check_comparison(comparison, library.package)
    noise_and_photos = f"{NOISE_IMAGES} images of noise and {len(images) - NOISE_IMAGES} photographs"
    return {
        "compared_on": f"{len(images)} images of noise" if classifier.preprocess.has_bands else noise_and_photos,
        "max_difference": comparison.max_difference,
        "agreement": comparison.agreement,
        "images": comparison.images,
    }


def check_comparison(comparison: Comparison, package: str) -> None:
    """Raises `VitrailError` if the library's outputs differ from the classifier's."""
    if not comparison.is_within_tolerance:
        difference = f"{comparison.max_difference:.2e}"
        raise VitrailError(f"{package} does not agree: its outputs differ by {difference}", "nothing was written")


def run_classifier(classifier: Classifier, images_BCHW: Tensor) -> Tensor:
    """Returns the outputs of the classifier for normalized images, as `Classifier.logits` does."""
    outputs = classifier.vit.eval()(images_BCHW.to(classifier.device)).float().cpu()
    return classifier.finish(outputs) if classifier.vit.config.classes else outputs


def make_probe_images(classifier: Classifier) -> Tensor:
    """Returns the normalized images of the comparison, (B, C, H, W): noise of different contrast, and photographs.

    There are no photographs of bands, so those are noise, too.
    """
    height, width = classifier.preprocess.image_size
    generator = torch.Generator().manual_seed(0)
    contrast = torch.linspace(0.2, 2.0, NOISE_IMAGES).view(-1, 1, 1, 1)
    noise = torch.randn(NOISE_IMAGES, classifier.preprocess.channels, height, width, generator=generator) * contrast
    pixels = torch.stack([*read_sample_photos(classifier).values()])
    return torch.cat([noise, classifier.preprocess.normalize(pixels)])
