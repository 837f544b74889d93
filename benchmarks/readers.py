"""Readers of images beside one another, in one run: vitrail's folder and shards, ImageFolder, WebDataset, HF datasets.

    python -m benchmarks.readers --write docs/benchmarks.md --out readers.json

Each reads the same JPEG files, decodes them with Pillow and stacks uint8 batches; nothing is resized or augmented. In
order and shuffled (a stream shuffles as it can: shards, and a buffer of 1,000), in the main process and in one of its
own. Readers take turns, a round begins with another one each time, ratios are within a round. The first pass of each
is not counted, so that files are in the page cache: what is compared is the readers, not a disk.

`--index N` instead measures what a made-up index of N images takes in memory and how long it takes to open.
Needs `pip install webdataset datasets` beside vitrail.
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


def make_folder(root: Path, n: int, side: int) -> Path:
    """Different crops of a photograph as JPEG files, in folders by class."""
    source = Image.open(PHOTO).convert("RGB")
    rng = np.random.default_rng(0)
    for i in range(n):
        x, y = (int(rng.integers(0, extent - side)) for extent in source.size)
        folder = root / f"class{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        source.crop((x, y, x + side, y + side)).save(folder / f"{i:06d}.jpg", quality=88)
    return root


def as_pixels(image: Image.Image) -> Tensor:
    """uint8 (3, H, W)."""
    return pil_to_tensor(image.convert("RGB"))


def ours(address: Path, side: int) -> Pass:
    """vitrail's own loader on a folder or on shards."""
    listing = open_source(address).splits["all"]
    images = encode_labels(listing, tuple(sorted(set(listing.labels))), str(address))
    preprocess = Preprocess(image_size=(side, side))

    def batches(shuffled: bool, workers: int) -> Iterable[Any]:
        if not shuffled:
            return EvaluationLoader(images, preprocess, batch_size=BATCH, workers=workers)
        return TrainLoader(images, Augmentation(lambda x: x), BATCH, seed=0, workers=workers).epoch(0)

    return batches


def imagefolder(folder: Path) -> Pass:
    """torchvision's."""
    dataset = ImageFolder(str(folder), transform=as_pixels)
    return lambda shuffled, workers: DataLoader(dataset, BATCH, shuffle=shuffled, num_workers=workers)


def webdataset(shards: Path) -> Pass:
    """WebDataset, on the shards that vitrail wrote."""
    import webdataset as wds

    files = [str(path) for path in sorted(shards.glob("*.tar"))]

    def sample(row: dict[str, bytes]) -> tuple[Tensor, int]:
        return as_pixels(Image.open(io.BytesIO(row["jpg"]))), int(row["cls"])

    def batches(shuffled: bool, workers: int) -> Iterable[Any]:
        dataset = wds.WebDataset(files, shardshuffle=len(files) if shuffled else False, empty_check=False)
        dataset = (dataset.shuffle(BUFFER) if shuffled else dataset).map(sample)
        return DataLoader(dataset, BATCH, num_workers=workers)

    return batches


def hugging_face(folder: Path, cache: Path) -> Pass:
    """datasets, its images inside its Arrow files."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    table.to_parquet(str(cache / "all.parquet"))
    table = datasets.load_dataset("parquet", data_files=str(cache / "all.parquet"), split="train", cache_dir=str(cache))

    def pixels(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [as_pixels(image) for image in rows["image"]], "label": rows["label"]}

    dataset = table.with_transform(pixels)
    return lambda shuffled, workers: DataLoader(dataset, BATCH, shuffle=shuffled, num_workers=workers)


def spent() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def timed(batches: Iterable[Any], n: int) -> dict[str, float]:
    """Images a second and processor seconds an image of one pass; every image must come."""
    began, used, seen = time.perf_counter(), spent(), 0
    for batch in batches:
        seen += len(batch["label"] if isinstance(batch, dict) else batch[1])
    if seen != n:
        raise RuntimeError(f"{seen} images of {n}")
    return {"images_per_second": n / (time.perf_counter() - began), "processor_seconds": (spent() - used) / n}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every reader in every way, round by round."""
    torch.set_num_threads(1)
    n, loads = arguments.images, [os.getloadavg()]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["VITRAIL_CACHE"] = str(root / "cache")
        folder = make_folder(root / "photos", n, arguments.side)
        written = write_shards(open_source(folder), root / "shards", shard_mib=arguments.size)
        readers: dict[str, Pass] = {
            "ImageFolder": imagefolder(folder),
            "vitrail, folder": ours(folder, arguments.side),
            "vitrail, shards": ours(root / "shards", arguments.side),
            "WebDataset": webdataset(root / "shards"),
            "HF datasets": hugging_face(folder, root / "hf"),
        }
        names = list(readers)
        ways = [(shuffled, workers) for workers in (0, 1) for shuffled in (False, True)]
        for name in names:
            timed(readers[name](False, 0), n)
        rounds = []
        for number in range(arguments.rounds):
            this: dict[str, dict[str, dict[str, float]]] = {}
            for shuffled, workers in ways:
                way = f"{'shuffled' if shuffled else 'in order'}, {workers} workers"
                turn = names[number % len(names) :] + names[: number % len(names)]
                this[way] = {name: timed(readers[name](shuffled, workers), n) for name in turn}
                print(f"round {number}: {way}: {this[way]}", file=sys.stderr)
            rounds.append(this)
    loads.append(os.getloadavg())
    return {
        "images": n, "side": arguments.side, "shards": sum(written.shards.values()), "bytes": written.bytes,
        "rounds": rounds, "readers": names, "cores": count_cores(), "processor": processor_name(),
        "torch": torch.__version__, "load_before_and_after": loads,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The results in markdown."""
    before, after = (found["load_before_and_after"][i][0] for i in (0, -1))
    ways = list(found["rounds"][0])
    lines = [
        f"{found['images']:,} JPEG files of {found['side']}x{found['side']} pixels ({found['bytes'] / 1e6:.0f} MB in "
        f"{found['shards']} shards), batches of {BATCH}, {len(found['rounds'])} rounds in turn, all in the page "
        f"cache; {found['cores']} cores ({found['processor']}), torch {found['torch']}. Load average before "
        f"{before:.1f}, after {after:.1f}. Each cell: images/s of ImageFolder = 1 (lowest to highest round), processor "
        "time an image.",
        "",
        "| | " + " | ".join(ways) + " |",
        "| --- |" + " --- |" * len(ways),
    ]
    for name in found["readers"]:
        cells = []
        for way in ways:
            rows = [each[way] for each in found["rounds"]]
            ratios = [row[name]["images_per_second"] / row["ImageFolder"]["images_per_second"] for row in rows]
            cost = 1000 * statistics.median(row[name]["processor_seconds"] for row in rows)
            rate = statistics.median(row[name]["images_per_second"] for row in rows)
            shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells.append(f"{shown if name != 'ImageFolder' else f'1, {rate:,.0f} images/s'}, {cost:.2f} ms")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def made_up(n: int) -> ShardIndex:
    """An index of images that are nowhere: 1,000 classes, 5,000 images a shard, names as long as ImageNet's."""
    columns = empty_columns(n)
    columns["shard"][:] = np.arange(n) // 5000
    columns["length"][:] = 20_000 + np.arange(n) % 7919
    columns["offset"][:] = 512 + (np.arange(n) % 5000) * 30_000
    columns["label"][:] = np.arange(n) * 1000 // n
    columns["sha256"][:] = np.random.default_rng(0).integers(0, 256, (n, 32), dtype=np.uint8)
    names = StringArray.from_strings(f"n{i * 1000 // n:08d}/image_{i:08d}.jpg" for i in range(n))
    shards = tuple(Shard(f"shards-{i:06d}.tar", 5000 * 30_000) for i in range(-(-n // 5000)))
    return ShardIndex("made-up", shards, tuple(f"n{i:08d}" for i in range(1000)), columns, names)


def made_up_set(folder: Path, n: int) -> Path:
    """A folder with that index, and shards that are holes."""
    folder.mkdir()
    made = made_up(n)
    save_index(made, folder / INDEX_FILE)
    for shard in made.shards:
        with (folder / shard.address).open("wb") as file:
            file.truncate(shard.size)
    return folder


def memory(n: int) -> dict[str, float]:
    """What opening and dividing a made-up set of n images takes, in a process of its own."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with tempfile.TemporaryDirectory() as place:
        address = Path(place, "set")
        if (maker := os.fork()) == 0:  # so that what making it takes is not measured
            made_up_set(address, n)
            os._exit(0)
        os.waitpid(maker, 0)
        receive, send = os.pipe()
        if (child := os.fork()) == 0:
            before, began = resident(), time.process_time()
            splits = open_data(address)
            opened = time.process_time() - began
            after, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            loader = TrainLoader(splits.train, Augmentation(lambda x: x), 256, seed=0, workers=0)
            batches = loader.epoch(0)
            found = {
                "images": n,
                "index_bytes_per_image": (address / INDEX_FILE).stat().st_size / n,
                "resident_bytes_per_image": (after - before) / n,
                "peak_bytes_per_image": (peak - before) / n,
                "epoch_bytes_per_image": (resident() - after) / n,
                "processor_seconds": opened,
            }
            os.write(send, json.dumps(found).encode())
            del batches
            os._exit(0)
        os.close(send)
        with os.fdopen(receive) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
    result: dict[str, float] = json.loads(said)
    return result


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--side", type=int, default=256, help="of the images (256)")
    parser.add_argument("--size", type=float, default=16, help="MiB of a shard (16)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--index", type=int, metavar="N", help="measure the memory of an index of N images instead")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--write", type=Path, help="put the table into this document")
    arguments = parser.parse_args()
    if arguments.index:
        print(json.dumps(memory(arguments.index), indent=1))
        return
    found = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    text = table(found)
    if arguments.write:
        replace_table(text, "readers", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
