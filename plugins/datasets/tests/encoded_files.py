"""Makers of small pictures in the containers that image data sets come in."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def array(number: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Random RGB pixels [H, W, 3]."""
    draws = np.random.default_rng(number)
    return draws.integers(0, 256, (*size, 3), dtype=np.uint8)


def png(number: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An encoded picture; lossless but for JPEG."""
    file = io.BytesIO()
    Image.fromarray(array(number, size)).save(file, kind, lossless=True)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def imagenet(root: Path, *, flat: bool = False) -> None:
    """Two classes with two training pictures each, and two validation pictures."""
    for place, wnid in enumerate(("n01440764", "n02102040")):
        for number in range(2):
            write(root / "train" / wnid / f"{wnid}_{number}.PNG", png(2 * place + number))
        name = f"ILSVRC2012_val_{place + 1:08d}.PNG"
        write(root / "val" / name if flat else root / "val" / wnid / name, png(10 + place))


def celeba(root: Path) -> None:
    """Four pictures of 6x10 pixels with two attributes: two to train on, one of each other part."""
    for number in range(4):
        write(root / "img_align_celeba" / f"{number:06d}.png", png(number, (10, 6)))
    parts = "\n".join(f"{number:06d}.png {part}" for number, part in enumerate((0, 1, 0, 2)))
    write(root / "list_eval_partition.txt", parts + "\n")
    rows = [f"{number:06d}.png  1 {-1 + 2 * (number % 2)}" for number in range(4)]
    write(root / "list_attr_celeba.txt", "\n".join(["4", "Young Smiling ", *rows]) + "\n")


def lmdb(root: Path, count: int = 5) -> None:
    """WebP pictures in a database, under keys in no order of writing."""
    import lmdb

    with lmdb.open(str(root), map_size=2**20) as database, database.begin(write=True) as writer:
        for number in reversed(range(count)):
            writer.put(f"{number:03d}".encode(), png(number, kind="WebP"))


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def shards(root: Path) -> None:
    """Two shards of two samples with `.cls` and `.json` labels 0 to 3."""
    for shard in range(2):
        members = {}
        for place in range(2):
            number = 2 * shard + place
            members[f"a/{number:04d}.png"] = png(number)
            members[f"a/{number:04d}.cls"] = str(number).encode()
            members[f"a/{number:04d}.json"] = json.dumps({"label": number}).encode()
        tar(root / f"train-{shard:04d}.tar", members)


def hugging_face(root: Path, *, splits: bool = True) -> None:
    """Four pictures with classes and a number, as `save_to_disk` writes them."""
    import datasets

    columns = {
        "img": [Image.fromarray(array(number)) for number in range(4)],
        "kind": [0, 1, 2, 1],
        "count": [7, 0, 3, 1],
    }
    features = datasets.Features(
        img=datasets.Image(),
        kind=datasets.ClassLabel(names=["a", "b", "c"]),
        count=datasets.Value("int64"),
    )
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict(columns, features=features)
    made = datasets.DatasetDict({"train": table, "test": table.select([3])}) if splits else table
    made.save_to_disk(str(root))
