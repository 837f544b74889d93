"""Compares readers of images: vitrail with a folder and with shards, ImageFolder, WebDataset, HF datasets.

    python -m benchmarks.readers --write docs/benchmarks.md --out readers.json

Each reads the same JPEG files, decodes them with Pillow and stacks uint8 batches, without resizing or augmentation: in
order and shuffled (a stream shuffles its shards and a buffer of 1,000 images), in the main process and with one worker.
The readers alternate within a round, each round starts with another one, and ratios are within a round. A first pass of
each is not counted: it fills the page cache, so that the disk does not matter.

`--index N` instead measures the memory and the opening time of a synthetic index of N images.
Needs `pip install webdataset datasets`.
"""

import argparse
import io
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.document import replace_table
from vitrail.data.augment import Augmentation
from vitrail.data.loader import EvaluationLoader, TrainLoader
from vitrail.data.open import open_data, open_source
from vitrail.data.preprocess import Preprocess
from vitrail.data.shards.index import INDEX_FILE, ShardIndex, empty_columns
from vitrail.data.shards.index_file import save_index
from vitrail.data.shards.storage import Shard
from vitrail.data.shards.writer import write_shards
from vitrail.data.source import encode_labels
from vitrail.data.strings import StringArray
from vitrail.machine import count_cores, processor_name

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "temple.jpg"
BATCH = 64
BUFFER = 1000  # of a stream's shuffle
CLASSES = 10
Pass = Callable[[bool, int], Iterable[Any]]  # (shuffled, workers) -> batches


def make_folder(root: Path, n: int, size: int) -> Path:
    """Writes different crops of a photograph as JPEG files, in folders by class."""
    source = Image.open(PHOTO).convert("RGB")
    rng = np.random.default_rng(0)
    for i in range(n):
        x, y = (int(rng.integers(0, extent - size)) for extent in source.size)
        folder = root / f"class{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        source.crop((x, y, x + size, y + size)).save(folder / f"{i:06d}.jpg", quality=88)
    return root


def to_pixels(image: Image.Image) -> Tensor:
    """Returns uint8 (3, H, W)."""
    return pil_to_tensor(image.convert("RGB"))


def vitrail_reader(address: Path, size: int) -> Pass:
    """vitrail's loader on a folder or on shards."""
    listing = open_source(address).splits["all"]
    images = encode_labels(listing, tuple(sorted(set(listing.labels))), str(address))
    preprocess = Preprocess(image_size=(size, size))

    def batches(shuffled: bool, workers: int) -> Iterable[Any]:
        if not shuffled:
            return EvaluationLoader(images, preprocess, batch_size=BATCH, workers=workers)
        return TrainLoader(images, Augmentation(lambda x: x), BATCH, seed=0, workers=workers).epoch(0)

    return batches


def image_folder_reader(folder: Path) -> Pass:
    """torchvision's ImageFolder."""
    dataset = ImageFolder(str(folder), transform=to_pixels)
    return lambda shuffled, workers: DataLoader(dataset, BATCH, shuffle=shuffled, num_workers=workers)


def webdataset_reader(shards: Path) -> Pass:
    """WebDataset, on the shards that vitrail wrote."""
    import webdataset as wds

    files = [str(path) for path in sorted(shards.glob("*.tar"))]

    def sample(row: dict[str, bytes]) -> tuple[Tensor, int]:
        return to_pixels(Image.open(io.BytesIO(row["jpg"]))), int(row["cls"])

    def batches(shuffled: bool, workers: int) -> Iterable[Any]:
        dataset = wds.WebDataset(files, shardshuffle=len(files) if shuffled else False, empty_check=False)
        dataset = (dataset.shuffle(BUFFER) if shuffled else dataset).map(sample)
        return DataLoader(dataset, BATCH, num_workers=workers)

    return batches


def hf_datasets_reader(folder: Path, cache: Path) -> Pass:
    """HF datasets with the images in its Arrow files."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    table.to_parquet(str(cache / "all.parquet"))
    table = datasets.load_dataset("parquet", data_files=str(cache / "all.parquet"), split="train", cache_dir=str(cache))

    def pixels(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [to_pixels(image) for image in rows["image"]], "label": rows["label"]}

    dataset = table.with_transform(pixels)
    return lambda shuffled, workers: DataLoader(dataset, BATCH, shuffle=shuffled, num_workers=workers)


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of the children it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def time_pass(batches: Iterable[Any], n: int) -> dict[str, float]:
    """Returns images per second and CPU seconds per image of one pass; checks that every image came."""
    start, cpu_start, images = time.perf_counter(), cpu_seconds(), 0
    for batch in batches:
        images += len(batch["label"] if isinstance(batch, dict) else batch[1])
    if images != n:
        raise RuntimeError(f"{images} images of {n}")
    return {
        "images_per_second": n / (time.perf_counter() - start),
        "cpu_seconds_per_image": (cpu_seconds() - cpu_start) / n,
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs every reader in every mode, round by round."""
    torch.set_num_threads(1)
    n, loads = arguments.images, [os.getloadavg()]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["VITRAIL_CACHE"] = str(root / "cache")
        folder = make_folder(root / "photos", n, arguments.image_size)
        summary = write_shards(open_source(folder), root / "shards", shard_mib=arguments.shard_mib)
        readers: dict[str, Pass] = {
            "ImageFolder": image_folder_reader(folder),
            "vitrail, folder": vitrail_reader(folder, arguments.image_size),
            "vitrail, shards": vitrail_reader(root / "shards", arguments.image_size),
            "WebDataset": webdataset_reader(root / "shards"),
            "HF datasets": hf_datasets_reader(folder, root / "hf"),
        }
        names = list(readers)
        modes = [(shuffled, workers) for workers in (0, 1) for shuffled in (False, True)]
        for name in names:
            time_pass(readers[name](False, 0), n)
        rounds = []
        for number in range(arguments.rounds):
            results: dict[str, dict[str, dict[str, float]]] = {}
            for shuffled, workers in modes:
                mode = f"{'shuffled' if shuffled else 'in order'}, {workers} workers"
                order = names[number % len(names) :] + names[: number % len(names)]
                results[mode] = {name: time_pass(readers[name](shuffled, workers), n) for name in order}
                print(f"round {number}: {mode}: {results[mode]}", file=sys.stderr)
            rounds.append(results)
    loads.append(os.getloadavg())
    return {
        "images": n, "image_size": arguments.image_size, "shards": sum(summary.shards.values()), "bytes": summary.bytes,
        "rounds": rounds, "readers": names, "cores": count_cores(), "processor": processor_name(),
        "torch": torch.__version__, "load_before_and_after": loads,
    }  # fmt: skip


def format_table(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    before, after = (results["load_before_and_after"][i][0] for i in (0, -1))
    modes, size = list(results["rounds"][0]), results["image_size"]
    lines = [
        f"{results['images']:,} JPEG files of {size}x{size} pixels ({results['bytes'] / 1e6:.0f} MB in "
        f"{results['shards']} shards), batches of {BATCH}, {len(results['rounds'])} alternating rounds, files in the "
        f"page cache; {results['cores']} cores ({results['processor']}), torch {results['torch']}. Load average before "
        f"{before:.1f}, after {after:.1f}. Each cell: images/s relative to ImageFolder (lowest to highest round), "
        "CPU time per image.",
        "",
        "| reader | " + " | ".join(modes) + " |",
        "| --- |" + " --- |" * len(modes),
    ]
    for name in results["readers"]:
        cells = []
        for mode in modes:
            rows = [each[mode] for each in results["rounds"]]
            ratios = [row[name]["images_per_second"] / row["ImageFolder"]["images_per_second"] for row in rows]
            cost = 1000 * statistics.median(row[name]["cpu_seconds_per_image"] for row in rows)
            rate = statistics.median(row[name]["images_per_second"] for row in rows)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells.append(f"{ratio if name != 'ImageFolder' else f'1, {rate:,.0f} images/s'}, {cost:.2f} ms")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def synthetic_index(n: int) -> ShardIndex:
    """Returns an index without images: 1,000 classes, 5,000 images per shard, names as long as those of ImageNet."""
    columns = empty_columns(n)
    columns["shard"][:] = np.arange(n) // 5000
    columns["length"][:] = 20_000 + np.arange(n) % 7919
    columns["offset"][:] = 512 + (np.arange(n) % 5000) * 30_000
    columns["label"][:] = np.arange(n) * 1000 // n
    columns["sha256"][:] = np.random.default_rng(0).integers(0, 256, (n, 32), dtype=np.uint8)
    names = StringArray.from_strings(f"n{i * 1000 // n:08d}/image_{i:08d}.jpg" for i in range(n))
    shards = tuple(Shard(f"shards-{i:06d}.tar", 5000 * 30_000) for i in range(-(-n // 5000)))
    return ShardIndex("synthetic", shards, tuple(f"n{i:08d}" for i in range(1000)), columns, names)


def write_synthetic_set(folder: Path, n: int) -> Path:
    """Writes a folder with a synthetic index and sparse files as shards."""
    folder.mkdir()
    index = synthetic_index(n)
    save_index(index, folder / INDEX_FILE)
    for shard in index.shards:
        with (folder / shard.address).open("wb") as file:
            file.truncate(shard.size)
    return folder


def measure_index(n: int) -> dict[str, float]:
    """Measures opening and splitting a synthetic set of n images, in a process of its own."""

    def resident_memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with tempfile.TemporaryDirectory() as temporary:
        address = Path(temporary, "set")
        if (writer := os.fork()) == 0:  # so that writing is not measured
            write_synthetic_set(address, n)
            os._exit(0)
        os.waitpid(writer, 0)
        receive, send = os.pipe()
        if (child := os.fork()) == 0:
            before, start = resident_memory(), time.process_time()
            splits = open_data(address)
            seconds = time.process_time() - start
            after, peak = resident_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            loader = TrainLoader(splits.train, Augmentation(lambda x: x), 256, seed=0, workers=0)
            batches = loader.epoch(0)
            results = {
                "images": n,
                "index_bytes_per_image": (address / INDEX_FILE).stat().st_size / n,
                "resident_bytes_per_image": (after - before) / n,
                "peak_bytes_per_image": (peak - before) / n,
                "epoch_bytes_per_image": (resident_memory() - after) / n,
                "cpu_seconds": seconds,
            }
            os.write(send, json.dumps(results).encode())
            del batches
            os._exit(0)
        os.close(send)
        with os.fdopen(receive) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
    results: dict[str, float] = json.loads(text)
    return results


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, metavar="N", help="default: 4000")
    parser.add_argument("--image-size", type=int, default=256, metavar="PIXELS", help="default: 256")
    parser.add_argument("--shard-mib", type=float, default=16, metavar="MIB", help="size of a shard (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--index", type=int, metavar="N", help="measure an index of N images instead")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    arguments = parser.parse_args()
    if arguments.index:
        print(json.dumps(measure_index(arguments.index), indent=1))
        return
    results = compare(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    text = format_table(results)
    if arguments.write:
        replace_table(text, "readers", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
