"""Where data sets, weights and statistics can be fetched, and where they belong under the data root.

Addresses are those of the original repository's readme and of the sets' own sites. Checksums are those that
torchvision (CIFAR, SVHN, DTD, Places365, the eight digits in ResNet's file name) and the library
`detectors` by E. Dadalto (LSUN, iSUN, the ImageNet OOD sets) publish; the SHA-256 of the original's own
files were taken from its repository.
"""

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["GROUPS", "ITEMS", "Item", "Step"]


class Step(Enum):
    """What turns a fetched file into what an item is."""

    UNPACK = auto()  #: the file is an archive, the item the folder that it holds
    SAMPLE = auto()  #: the same, but only a sample of the files is kept
    SELECT_SVHN = auto()  #: the file is SVHN's test set, the item a part of it


@dataclass(frozen=True)
class Item:
    """One file that can be fetched.

    path: what there is in the end, a file or a folder under the data root.
    digest: of the fetched file, "md5:HEX" or "sha256:HEX" (its first digits suffice), None where nobody
        publishes
        one.
    step: what turns the fetched file into `path`; None where it is `path` itself.
    """

    url: str
    path: str
    digest: str | None
    step: Step | None = None


_OOD = "datasets/ood_datasets"
_AUTHORS = "https://raw.githubusercontent.com/deeplearning-wisc/dice"
_WEIGHTS, _STATISTICS = "ca6c275c5e1948858a911ea40924d6d5c412aac2", "43896f8142f63159226228f4166afbbfcde7eb89"
_KRIZ = "https://www.cs.toronto.edu/~kriz"
_DROPBOX = "https://www.dropbox.com/s"
_CURATED = "http://pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset"


def _checkpoint(name: str, sha256: str) -> Item:
    path = f"checkpoints/{name}/densenet/checkpoint_100.pth.tar"
    return Item(f"{_AUTHORS}/{_WEIGHTS}/{path}", path, f"sha256:{sha256}")


def _statistics(name: str, sha256: str) -> Item:
    path = f"cache/{name}_feat_stat.npy"
    return Item(f"{_AUTHORS}/{_STATISTICS}/{path}", path, f"sha256:{sha256}")


def _archive(path: str, url: str, md5: str, step: Step = Step.UNPACK) -> Item:
    return Item(url, path, f"md5:{md5}", step)


ITEMS = {
    "checkpoint-CIFAR-10": _checkpoint(
        "CIFAR-10", "deaefd082911a1c6c92aacdcfecf03c71b932acc5c08b779c85c44eccdc0c817"
    ),
    "checkpoint-CIFAR-100": _checkpoint(
        "CIFAR-100", "56cbe261c2612976e11aedcbd60ba00766e8c01c78f96c3f18ff561ead804d47"
    ),
    "mean-CIFAR-10": _statistics(
        "CIFAR-10_densenet", "e9aa39f06dabfb58ae09d9d8f3141b5f88ffa0c954b369bf3af79b061d2ce7ef"
    ),
    "mean-CIFAR-100": _statistics(
        "CIFAR-100_densenet", "6183e3887c89cd0b241a1a2cf2dff4d108c2630f1d0805f2c85b9e3a35fed7f6"
    ),
    "mean-imagenet": _statistics(
        "imagenet_resnet50", "46d20b0aa4f996acfb11a58b97b7ed8497d67b918b1db335fcb0183e099b5f3f"
    ),
    "CIFAR-10": _archive(
        "data/cifar-10-batches-py", f"{_KRIZ}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
    ),
    "CIFAR-100": _archive(
        "data/cifar-100-python", f"{_KRIZ}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"
    ),
    "SVHN": Item(
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        f"{_OOD}/svhn/selected_test_32x32.mat",
        "md5:eb5a983be6a315427106f1b164d9cef3",
        Step.SELECT_SVHN,
    ),
    "LSUN": _archive(
        f"{_OOD}/LSUN", f"{_DROPBOX}/fhtsw1m3qxlwj6h/LSUN.tar.gz?dl=1", "458a0a0ab8e5f1cb4516d7400568e460"
    ),
    "LSUN_resize": _archive(
        f"{_OOD}/LSUN_resize",
        f"{_DROPBOX}/moqh2wh8696c3yl/LSUN_resize.tar.gz?dl=1",
        "278b7b31c8cb7e804a1465a8ce03a2dc",
    ),
    "iSUN": _archive(
        f"{_OOD}/iSUN", f"{_DROPBOX}/ssz7qxfqae0cca5/iSUN.tar.gz?dl=1", "be77b0f2c26fda898afac5f99645ee70"
    ),
    "dtd": _archive(
        f"{_OOD}/dtd",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        "fff73e5086ae6bdbea199a49dfb8a4c1",
    ),
    "places365": _archive(  # 4.4 GB for 10,000 images: the original samples them from the test set
        f"{_OOD}/places365/test_subset",
        "http://data.csail.mit.edu/places/places365/test_256.tar",
        "f532f6ad7b582262a2ec8009075e186b",
        Step.SAMPLE,
    ),
    "inat": _archive(
        f"{_OOD}/iNaturalist", f"{_CURATED}/iNaturalist.tar.gz", "5be6ea8aa027d7b631916427b32cb335"
    ),
    "sun": _archive(f"{_OOD}/SUN", f"{_CURATED}/SUN.tar.gz", "8469c3ada62211477954ec1be53b12d0"),
    "places": _archive(f"{_OOD}/Places", f"{_CURATED}/Places.tar.gz", "b5cb5eba2754ae2a28beea8718db699a"),
    "resnet50": Item(
        "https://download.pytorch.org/models/resnet50-19c8e357.pth",
        "checkpoints/resnet50-19c8e357.pth",
        "sha256:19c8e357",
    ),
    "BiT-S-R101x1": Item(
        "https://storage.googleapis.com/bit_models/BiT-S-R101x1.npz", "checkpoints/BiT-S-R101x1.npz", None
    ),
}

GROUPS = {
    "cifar": [
        *(
            "checkpoint-CIFAR-10",
            "checkpoint-CIFAR-100",
            "mean-CIFAR-10",
            "mean-CIFAR-100",
            "CIFAR-10",
            "CIFAR-100",
        ),
        *("SVHN", "LSUN", "LSUN_resize", "iSUN", "dtd", "places365"),
    ],
    "imagenet": ["mean-imagenet", "resnet50", "dtd", "sun", "inat", "places"],
}
