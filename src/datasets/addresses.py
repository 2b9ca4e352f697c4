"""Where the official files of the papers' data sets are fetched from, and the hashes that they must have.

Sources: the sets' own pages and torchvision; of RESISC45, torchgeo.
"""

from src.datasets.download import Download


def _files(folder: str, site: str, files: dict[str, str]) -> tuple[Download, ...]:
    """Downloads of one site into one folder: name -> MD5 or SHA-256."""
    return tuple(Download(f"{site}/{file}", digest, folder) for file, digest in files.items())


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


PCAM = {
    "camelyonpatch_level_2_split_train_x.h5": "1571f514728f59376b705fc836ff4b63",
    "camelyonpatch_level_2_split_train_y.h5": "35c2d7259d906cfc8143347bb8e05be7",
    "camelyonpatch_level_2_split_test_x.h5": "d8c2d60d490dbd479f8199bdfa0cf6ec",
    "camelyonpatch_level_2_split_test_y.h5": "60a7035772fbdb7f34eb86d4420cf66a",
}

DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "DTD": _files("dtd", f"{ROBOTS}/dtd/download", {"dtd-r1.0.1.tar.gz": "fff73e5086ae6bdbea199a49dfb8a4c1"}),
    "EuroSAT": _files("eurosat", EUROSAT, {"EuroSAT.zip": "c8fa014336c82ac7804f0398fcb19387"}),
    "GTSRB": _files(
        "gtsrb",
        ERDA,
        {
            "GTSRB-Training_fixed.zip": "513f3c79a4c5141765e10e952eaa2478",
            "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
            "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
        },
    ),
    "MNIST": _files(
        "MNIST/raw",
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "RESISC45": _files(
        "resisc45",
        RESISC45,
        {
            "NWPU-RESISC45.zip": "75206b2e16446591afa88e2628744886",
            "resisc45-train.txt": "b5a4c05a37de15e4ca886696a85c403e",
            "resisc45-test.txt": "3dda9e4988b47eb1de9f07993653eb08",
        },
    ),
    "SVHN": _files(
        "svhn",
        "http://ufldl.stanford.edu/housenumbers",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    "STL10": _files(
        "stl10",
        "http://ai.stanford.edu/~acoates/stl10",
        {"stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"},
    ),
    "OxfordIIITPet": _files(
        "OxfordIIITPet/oxford-iiit-pet",
        f"{ROBOTS}/pets/data",
        {
            "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
        },
    ),
    "Flowers102": _files(
        "flowers102/flowers-102",
        f"{ROBOTS}/flowers/102",
        {
            "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
            "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
            "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
        },
    ),
    "CIFAR100": _files(
        "", "https://www.cs.toronto.edu/~kriz", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
    ),
    "PCAM": _files(
        "PCAM/pcam",
        "https://zenodo.org/records/2546921/files",
        {f"{file}.gz": md5 for file, md5 in PCAM.items()},  # the hashes are of the gzipped files
    ),
    "CIFAR10": _files(
        "", "https://www.cs.toronto.edu/~kriz", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
    ),
    "Food101": _files(
        "food101", "http://data.vision.ee.ethz.ch/cvl", {"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"}
    ),
    "FashionMNIST": _files(
        "FashionMNIST/FashionMNIST/raw",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "RenderedSST2": _files(
        "RenderedSST2",
        "https://openaipublic.azureedge.net/clip/data",
        {"rendered-sst2.tgz": "2384d08e9dcfa4bd55b324e610496ee5"},
    ),
    "EMNIST": _emnist(
        "https://media.githubusercontent.com/media/aurelienduarte/emnist/master/gzip", "digits", EMNIST_DIGITS
    ),
    "KMNIST": _files(
        "KMNIST/KMNIST/raw",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
        {
            "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
        },
    ),
    "EMNIST_letters": _emnist(
        "https://huggingface.co/datasets/Heliosoph/EMNIST/resolve/main", "letters", EMNIST_LETTERS
    ),
}
# The same files from elsewhere, where a server does not give them one by one.
OTHERWISE: dict[str, tuple[Download, ...]] = {"EMNIST": (EMNIST_ARCHIVE,), "EMNIST_letters": (EMNIST_ARCHIVE,)}
