"""The papers' 20 data sets and the control, one row each; what is known of a set stands in its row.

The first 8 and 14 tasks are the papers' smaller benchmarks. `EMNIST` is the digits of TALL's 20 tasks, `EMNIST_letters`
the letters of FusionBench's: two benchmarks. `FER2013` is numbered and named as published, which published checkpoints
need; but the published loader numbers emotions by name and prompts in Kaggle's order, so that its prompts for sad,
surprised and neutral faces go with neutral, sad and surprised ones. `FER2013_corrected` names them rightly.

Sources: epochs, names and order from the published code; sizes, addresses and hashes from the sets' own pages and
torchvision.
"""

from collections.abc import Sequence
from functools import partial

from src.datasets import official
from src.datasets.base import Dataset
from src.datasets.classnames import CLASSNAMES
from src.datasets.download import Download
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
from src.datasets.prepare import Facts, load
from src.datasets.templates import TEMPLATES

Images = int | Sequence[int]  # a total, or one number for each class


def _row(
    name: str, epochs: int | None, *, train: Images, test: Images, licence: str, page: str, note: str = "", **facts
) -> tuple[Facts, Dataset]:
    """One data set. `train` and `test` say how many images the parts hold; `facts` are those of `Facts`."""
    counts = {"train": train, "test": test} | facts.pop("other_parts", {})
    known = Facts(name, CLASSNAMES[name], counts, **facts)
    about = {"licence": licence, "source": page} | ({"note": note} if note else {})
    loader = partial(load, known)
    others = {"fusion_bench": FUSION_BENCH[name]} if name in FUSION_BENCH else {}
    row = Dataset(name, "vision", CLASSNAMES[name], TEMPLATES[name], loader, epochs, about=about, names_of=others)
    return known, row


def _files(folder: str, site: str, files: dict[str, str]) -> tuple[Download, ...]:
    """Downloads of one site into one folder: name -> MD5 or SHA-256."""
    return tuple(Download(f"{site}/{file}", digest, folder) for file, digest in files.items())


def _each(images: int, classes: int) -> Sequence[int]:
    return [images] * classes


EUROSAT_FOLDERS = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake".split()
)


def _eurosat_folders() -> list[tuple[str]]:
    return [(name,) for name in EUROSAT_FOLDERS]


ROBOTS = "https://www.robots.ox.ac.uk/~vgg/data"
ERDA = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
EUROSAT = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd"
RESISC45 = "https://huggingface.co/datasets/isaaccorley/resisc45/resolve/883edc0eee77b2c84225472f10f126e3ed83fa6e"
# NIST gives all six of its sets in one archive of 540 MB; others keep its files one by one, as they came out of it.
# Their hashes are those in Git LFS of aurelienduarte/emnist, which other projects took from NIST's archive.
EMNIST_ARCHIVE = Download(
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e", "EMNIST/EMNIST/raw"
)
EMNIST_DIGITS = {
    "train-images-idx3": "f7c95004d14d81af89522e67d8f0c781dfb3bd544181c81bfe1eb6b41c35b726",
    "train-labels-idx1": "6638a6ff5fe2eefd9cca2471995b46c82986b8e4b2a70d2f5ce8e05d7edb319e",
    "test-images-idx3": "20ebe43509264f7639d37c835a3f0b009e90b29e00a099a03101abe1644a3f63",
    "test-labels-idx1": "bad1834c45d5988e270b99d43b13edc3fd898f658ffbc2caf2846ef27f7b05b0",
}
EMNIST_LETTERS = {
    "train-images-idx3": "6288f418a917e007bf5fddb823a2dc7a5c6a35031401b93292a539cb12bd881f",
    "train-labels-idx1": "9759af91ea6bccdf07a6040fd085861f2ec88e37f7c3f5760f6feb57106fbe5c",
    "test-images-idx3": "50f0e93d75b99b463e9760b8345866f22587fa2c2fba472730a5ba09c693412d",
    "test-labels-idx1": "924955c31fe7fd809b7303b5c0141282955f4b8390c74cdfd5d80435e0f4b4cb",
}


def _emnist(site: str, part: str, digests: dict[str, str]) -> tuple[Download, ...]:
    files = {f"emnist-{part}-{kind}-ubyte.gz": digest for kind, digest in digests.items()}
    return _files("EMNIST/EMNIST/raw", site, files)


EMNIST_FOLDERS = ("EMNIST/EMNIST/raw", "EMNIST/EMNIST/raw/gzip", "EMNIST/raw")
EMNIST_PAGE = "https://www.nist.gov/itl/products-and-services/emnist-dataset"
PCAM = {
    "camelyonpatch_level_2_split_train_x.h5": "1571f514728f59376b705fc836ff4b63",
    "camelyonpatch_level_2_split_train_y.h5": "35c2d7259d906cfc8143347bb8e05be7",
    "camelyonpatch_level_2_split_test_x.h5": "d8c2d60d490dbd479f8199bdfa0cf6ec",
    "camelyonpatch_level_2_split_test_y.h5": "60a7035772fbdb7f34eb86d4420cf66a",
}
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
        downloads=_files("dtd", f"{ROBOTS}/dtd/download", {"dtd-r1.0.1.tar.gz": "fff73e5086ae6bdbea199a49dfb8a4c1"}),
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
        downloads=_files("eurosat", EUROSAT, {"EuroSAT.zip": "c8fa014336c82ac7804f0398fcb19387"}),
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
        downloads=_files(
            "gtsrb",
            ERDA,
            {
                "GTSRB-Training_fixed.zip": "513f3c79a4c5141765e10e952eaa2478",
                "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
                "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
            },
        ),
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
        downloads=_files(
            "MNIST/raw",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
        mirror=Mirror("ylecun/mnist", first_labels=(5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5)),
        licence="CC BY-SA 3.0",
        page="https://yann.lecun.org/exdb/mnist/",
    ),
    _row(
        "RESISC45",
        15,
        train=18900,
        test=6300,
        layouts=(Layout("resisc45", ("NWPU-RESISC45", "resisc45-train.txt", "resisc45-test.txt"), official.resisc45),),
        downloads=_files(
            "resisc45",
            RESISC45,
            {
                "NWPU-RESISC45.zip": "75206b2e16446591afa88e2628744886",
                "resisc45-train.txt": "b5a4c05a37de15e4ca886696a85c403e",
                "resisc45-test.txt": "3dda9e4988b47eb1de9f07993653eb08",
            },
        ),
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
        downloads=_files(
            "svhn",
            "http://ufldl.stanford.edu/housenumbers",
            {
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
        ),
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
        downloads=_files(
            "stl10",
            "http://ai.stanford.edu/~acoates/stl10",
            {"stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"},
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
        downloads=_files(
            "OxfordIIITPet/oxford-iiit-pet",
            f"{ROBOTS}/pets/data",
            {
                "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
                "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
            },
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
        downloads=_files(
            "flowers102/flowers-102",
            f"{ROBOTS}/flowers/102",
            {
                "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
                "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
                "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
            },
        ),
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
        downloads=_files(
            "", "https://www.cs.toronto.edu/~kriz", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
        ),
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
        downloads=_files(
            "PCAM/pcam",
            "https://zenodo.org/records/2546921/files",
            {f"{file}.gz": md5 for file, md5 in PCAM.items()},  # the hashes are of the gzipped files
        ),
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
        downloads=_files(
            "", "https://www.cs.toronto.edu/~kriz", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
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
        downloads=_files(
            "food101", "http://data.vision.ee.ethz.ch/cvl", {"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"}
        ),
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
        downloads=_files(
            "FashionMNIST/FashionMNIST/raw",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
        mirror=Mirror("zalando-datasets/fashion_mnist", first_labels=(9, 0, 0, 3, 0, 2, 7, 2, 5, 5)),
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
        downloads=_files(
            "RenderedSST2",
            "https://openaipublic.azureedge.net/clip/data",
            {"rendered-sst2.tgz": "2384d08e9dcfa4bd55b324e610496ee5"},
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
        downloads=_emnist(
            "https://media.githubusercontent.com/media/aurelienduarte/emnist/master/gzip", "digits", EMNIST_DIGITS
        ),
        otherwise=(EMNIST_ARCHIVE,),
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
        downloads=_files(
            "KMNIST/KMNIST/raw",
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
            {
                "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
                "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
                "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
                "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
            },
        ),
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
        downloads=_emnist("https://huggingface.co/datasets/Heliosoph/EMNIST/resolve/main", "letters", EMNIST_LETTERS),
        otherwise=(EMNIST_ARCHIVE,),
        mirror=Mirror(
            "tanganke/emnist_letters",
            first_labels=(22, 6, 15, 14, 22, 16, 12, 10, 21, 23, 9, 13, 17, 20, 25),
            strokes=8,  # I and i
            turns=False,  # FusionBench's checkpoints were fine-tuned on the mirror's images as they lie
        ),
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
