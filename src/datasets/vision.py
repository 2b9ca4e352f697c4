"""The papers' 20 data sets and the control, one row each; what is known of a set stands in its row.

Where official files are fetched from stands in addresses.py.

The first 8 and 14 tasks are the papers' smaller benchmarks. `EMNIST` is the digits of TALL's 20 tasks, `EMNIST_letters`
the letters of FusionBench's: two benchmarks. `FER2013` is numbered and named as published, which published checkpoints
need; but the published loader numbers emotions by name and prompts in Kaggle's order, so that its prompts for sad,
surprised and neutral faces go with neutral, sad and surprised ones. `FER2013_corrected` names them rightly.

Sources: epochs, names and order from the published code; sizes from the sets' own pages and torchvision; hashes of
training labels from the official files of labels, where these could be had.
"""

from collections.abc import Sequence
from functools import partial

from src.datasets import official
from src.datasets.addresses import DOWNLOADS, OTHERWISE, PCAM, ROBOTS
from src.datasets.base import Dataset
from src.datasets.classnames import CLASSNAMES
from src.datasets.facts import Facts
from src.datasets.fusion_bench import NAMES as FUSION_BENCH
from src.datasets.hub import Mirror
from src.datasets.official import (
    Layout,
    cifar_layout,
    folder_layout,
    idx_layouts,
    imagenet_synsets,
    named_as_classes,
)
from src.datasets.record import load
from src.datasets.templates import TEMPLATES

Images = int | Sequence[int]  # a total, or one number for each class


def _row(
    name: str, epochs: int | None, *, train: Images, test: Images, licence: str, page: str, note: str = "", **facts
) -> tuple[Facts, Dataset]:
    """One data set. `train` and `test` say how many images the parts hold; `facts` are those of `Facts`."""
    counts = {"train": train, "test": test} | facts.pop("other_parts", {})
    downloads, otherwise = DOWNLOADS.get(name, ()), OTHERWISE.get(name, ())
    known = Facts(name, CLASSNAMES[name], counts, downloads=downloads, otherwise=otherwise, **facts)
    about = {"licence": licence, "source": page} | ({"note": note} if note else {})
    loader = partial(load, known)
    others = {"fusion_bench": FUSION_BENCH[name]} if name in FUSION_BENCH else {}
    row = Dataset(name, "vision", CLASSNAMES[name], TEMPLATES[name], loader, epochs, about=about, names_of=others)
    return known, row


def _each(images: int, classes: int) -> Sequence[int]:
    return [images] * classes


EUROSAT_FOLDERS = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake".split()
)


def _eurosat_folders() -> list[tuple[str]]:
    return [(name,) for name in EUROSAT_FOLDERS]


EMNIST_FOLDERS = ("EMNIST/EMNIST/raw", "EMNIST/EMNIST/raw/gzip", "EMNIST/raw")
EMNIST_PAGE = "https://www.nist.gov/itl/products-and-services/emnist-dataset"
FER_CLASSES = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
_fer = partial(
    _row,
    epochs=10,
    train=[3995, 436, 4097, 7215, 4965, 4830, 3171],
    test=[958, 111, 1024, 1774, 1233, 1247, 831],
    layouts=tuple(Layout("fer2013", (file,), official.fer2013) for file in ("fer2013.csv", "icml_face_data.csv")),
    by_hand="Kaggle asks for a login",
    other_order="the rows of Kaggle's csv stand in another order than the images that the published code loads",
    mirror=Mirror("clip-benchmark/wds_fer2013", image="jpg", label="cls", classes=FER_CLASSES),
    licence="terms of the Kaggle competition: research and education",
    page="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
)

_TABLE = (
    _row(
        "Cars",
        35,
        train=8144,
        test=8041,
        layouts=(
            Layout(
                "stanford_cars",
                ("devkit/cars_train_annos.mat", "cars_train", "cars_test_annos_withlabels.mat", "cars_test"),
                official.cars,
            ),
        ),
        by_hand="its server no longer has it",
        mirror=Mirror("tanganke/stanford_cars", file_names=r"\d{5}\.jpg", by_class=False),
        train_labels="52167373adda38db0fbff404428f78c20a195a5a04cf7878fb766312c70528da",
        licence="research, non-commercial",
        page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    ),
    _row(
        "DTD",
        76,
        train=_each(80, 47),
        test=_each(40, 47),
        layouts=(
            Layout("dtd/dtd", ("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"), official.dtd),
            folder_layout("dtd", partial(named_as_classes, "DTD"), train="train", test="val"),
        ),
        mirror=Mirror("tanganke/dtd", file_names=r"[a-z-]+_\d{4}\.jpg"),
        guarded=True,
        licence="research",
        page=f"{ROBOTS}/dtd/",
        note="train and val of partition 1 to train on; the published TALL checkpoints were trained on test images",
    ),
    _row(
        "EuroSAT",
        12,
        train=21600,
        test=2700,
        other_parts={"val": 2700, "all": [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000]},
        layouts=(
            folder_layout("EuroSAT_splits", _eurosat_folders, train="train", val="val", test="test"),
            folder_layout("eurosat", _eurosat_folders, all="2750"),
        ),
        mirror=Mirror("tanganke/eurosat"),
        guarded=True,
        other_order="it has no official split, and the published one was never published",
        licence="MIT",
        page="https://github.com/phelber/EuroSAT",
        note="no official split, and that of the published checkpoints is not published; the mirror has no validation "
        "images, so they are cut from its 21,600",
    ),
    _row(
        "GTSRB",
        11,
        train=26640,
        test=12630,
        layouts=(Layout("gtsrb", ("GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv"), official.gtsrb),),
        mirror=Mirror("tanganke/gtsrb", file_names=r"\d{5}_\d{5}\.(ppm|png)"),
        licence="CC0",
        page="https://benchmark.ini.rub.de/",
    ),
    _row(
        "MNIST",
        5,
        train=[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        test=[980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        layouts=idx_layouts("MNIST/raw"),
        mirror=Mirror("ylecun/mnist"),
        train_labels="2d1c8ea7f5b8d719a187535111801d0c700e4426f84845dcb1a05a677b781d0e",
        licence="CC BY-SA 3.0",
        page="https://yann.lecun.org/exdb/mnist/",
    ),
    _row(
        "RESISC45",
        15,
        train=18900,
        test=6300,
        layouts=(Layout("resisc45", ("NWPU-RESISC45", "resisc45-train.txt", "resisc45-test.txt"), official.resisc45),),
        mirror=Mirror("tanganke/resisc45", file_names=r"[a-z_]+_\d{3}\.jpg"),
        licence="research",
        page="https://doi.org/10.1109/jproc.2017.2675998",
        note="split lists of arXiv:1911.06721; their 6,300 validation images are not used, as published",
    ),
    _row(
        "SVHN",
        4,
        train=[4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659],
        test=[1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595],
        layouts=(Layout("svhn", ("train_32x32.mat", "test_32x32.mat"), official.svhn),),
        mirror=Mirror("ufldl-stanford/svhn", config="cropped_digits", first_labels=(1, 9, 2, 3, 2, 5, 9, 3, 3, 1)),
        licence="non-commercial",
        page="http://ufldl.stanford.edu/housenumbers/",
    ),
    _row(
        "SUN397",
        14,
        train=_each(50, 397),
        test=_each(50, 397),
        layouts=(
            folder_layout("sun397", partial(named_as_classes, "SUN397"), train="train", test="val"),
            Layout("SUN397", ("Training_01.txt", "Testing_01.txt", "a"), official.sun397),
        ),
        by_hand="its server no longer has it",
        mirror=Mirror("tanganke/sun397", file_names=r"sun_[a-z]+\.jpg"),
        licence="research",
        page="https://vision.princeton.edu/projects/2010/SUN/",
        note="partition 1",
    ),
    _row(
        "STL10",
        60,
        train=_each(500, 10),
        test=_each(800, 10),
        layouts=(
            Layout("stl10/stl10_binary", ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"), official.stl10),
        ),
        mirror=Mirror("tanganke/stl10"),
        licence="images of ImageNet: research, non-commercial",
        page="https://cs.stanford.edu/~acoates/stl10/",
    ),
    _row(
        "OxfordIIITPet",
        82,
        train=3680,
        test=3669,
        layouts=(
            Layout(
                "OxfordIIITPet/oxford-iiit-pet",
                ("images", "annotations/trainval.txt", "annotations/test.txt"),
                official.pets,
            ),
        ),
        mirror=Mirror("timm/oxford-iiit-pet"),
        licence="CC BY-SA 4.0",
        page=f"{ROBOTS}/pets/",
    ),
    _row(
        "Flowers102",
        147,
        train=_each(10, 102),
        test=6149,
        layouts=(Layout("flowers102/flowers-102", ("jpg", "imagelabels.mat", "setid.mat"), official.flowers102),),
        mirror=Mirror("dpdl-benchmark/oxford_flowers102"),
        licence="not stated",
        page=f"{ROBOTS}/flowers/102/",
        note="the official 1,020 validation images are not used, as published",
    ),
    _row(
        "CIFAR100",
        6,
        train=_each(500, 100),
        test=_each(100, 100),
        layouts=(cifar_layout("cifar-100-python", ("train",), ("test",), "fine_labels"),),
        mirror=Mirror("tanganke/cifar100", first_labels=(19, 29, 0, 11, 1, 86, 90, 28, 23, 31)),
        licence="not stated",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    _row(
        "PCAM",
        1,
        train=262144,
        test=32768,
        layouts=(Layout("PCAM/pcam", tuple(PCAM), official.pcam),),
        mirror=Mirror("1aurent/PatchCamelyon"),
        licence="CC0",
        page="https://github.com/basveeling/pcam",
    ),
    _fer("FER2013", note="numbered and named as published: three prompts go with the wrong classes"),
    _row(
        "CIFAR10",
        6,
        train=_each(5000, 10),
        test=_each(1000, 10),
        layouts=(
            cifar_layout(
                "cifar-10-batches-py", tuple(f"data_batch_{n}" for n in range(1, 6)), ("test_batch",), "labels"
            ),
        ),
        mirror=Mirror("tanganke/cifar10", first_labels=(6, 9, 9, 4, 1, 1, 2, 7, 8, 3)),
        licence="not stated",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    _row(
        "Food101",
        4,
        train=_each(750, 101),
        test=_each(250, 101),
        layouts=(Layout("food101/food-101", ("images", "meta/train.json", "meta/test.json"), official.food101),),
        mirror=Mirror("ethz/food101", test="validation"),
        licence="images of Foodspotting: research",
        page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    _row(
        "FashionMNIST",
        5,
        train=_each(6000, 10),
        test=_each(1000, 10),
        layouts=idx_layouts("FashionMNIST/FashionMNIST/raw", "FashionMNIST/raw"),
        mirror=Mirror("zalando-datasets/fashion_mnist"),
        train_labels="6b2eb0ef4ba96781f2a0a71e3e502bede6a31c4f8323aa56b7e65903fd30d468",
        licence="MIT",
        page="https://github.com/zalandoresearch/fashion-mnist",
    ),
    _row(
        "RenderedSST2",
        39,
        train=[3310, 3610],
        test=[912, 909],
        layouts=(
            Layout(
                "RenderedSST2/rendered-sst2",
                tuple(f"{part}/{name}" for part in ("train", "test") for name in ("negative", "positive")),
                official.rendered_sst2,
            ),
        ),
        mirror=Mirror("nateraw/rendered-sst2"),
        licence="not stated",
        page="https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md",
    ),
    _row(
        "EMNIST",
        2,
        train=_each(24000, 10),
        test=_each(4000, 10),
        layouts=idx_layouts(*EMNIST_FOLDERS, train="emnist-digits-train", test="emnist-digits-test"),
        mirror=Mirror("ernestchu/emnist-digits", strokes=1),
        licence="public domain",
        page=EMNIST_PAGE,
        note="the digits; the official images lie on their side, and the published code leaves them so; a mirror's are "
        "turned so",
    ),
    _row(
        "KMNIST",
        5,
        train=_each(6000, 10),
        test=_each(1000, 10),
        layouts=idx_layouts("KMNIST/KMNIST/raw", "KMNIST/raw"),
        mirror=Mirror(
            "tanganke/kmnist", classes=FUSION_BENCH["KMNIST"], first_labels=(8, 7, 0, 1, 4, 2, 4, 8)
        ),  # in kana
        licence="CC BY-SA 4.0",
        page="http://codh.rois.ac.jp/kmnist/",
    ),
    _row(
        "ImageNet",
        None,
        train=1281167,
        test=_each(50, 1000),
        layouts=(
            folder_layout("imagenet", imagenet_synsets, train="train", test="val_in_folder"),
            folder_layout("imagenet", imagenet_synsets, train="train", test="val"),
        ),
        by_hand="it is given on request",
        mirror=Mirror(
            "ILSVRC/imagenet-1k",
            test="validation",
            longer_names=True,
            file_names=r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})(_n\d{8})?\.JPEG",
        ),
        licence="research, non-commercial, on request",
        page="https://image-net.org/download.php",
        note="control of negation: 5,000 training images for validation; the official validation images are the test",
    ),
    _row(
        "EMNIST_letters",
        2,
        train=_each(4800, 26),
        test=_each(800, 26),
        layouts=idx_layouts(*EMNIST_FOLDERS, train="emnist-letters-train", test="emnist-letters-test", first=1),
        mirror=Mirror(
            "tanganke/emnist_letters",
            strokes=8,  # I and i
            turns=False,  # FusionBench's checkpoints were fine-tuned on the mirror's images as they lie
        ),
        train_labels="bb159969312d4e52946ad78bac4c9be3239a8821d499a15a1436d669afeee63e",
        licence="public domain",
        page=EMNIST_PAGE,
        note="the letters, a variant outside of the 20 tasks",
    ),
    _fer("FER2013_corrected", note="with the right names; a variant outside of the 20 tasks"),
)

FACTS: dict[str, Facts] = {known.name: known for known, _ in _TABLE}
ROWS: tuple[Dataset, ...] = tuple(row for _, row in _TABLE)
CONTROL = "ImageNet"
TASKS: tuple[str, ...] = tuple(row.name for row in ROWS[:20])
