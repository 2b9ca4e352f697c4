"""Where checkpoints and masks are published, and what their files are called."""

DRIVE = "https://drive.google.com"
DRIVE_FOLDERS = {
    "checkpoints": {
        "ViT-B-32": "16xmoeMqNf1JlICqjMUEgHiH6mHn0G1f0",
        "ViT-B-16": "1dmLqIwCYPqO0qsNEuflPhC5-_QodQHDv",
        "ViT-L-14": "1QFBcz79RqXUAkEVlYOItt6VJIcf1Ppq6",
    },
    "tall_masks": {
        "ViT-B-32": "1jpqsurrAdD5bn9i7pRBsTq4E3ayPb0YK",
        "ViT-B-16": "1jYNsdeFz6vlwIl5s4T48zeTm7FdwTSL9",
        "ViT-L-14": "16GVDMhpScmM3zeyfubjmNRFLiFKkBE7p",
    },
}
MODELS = tuple(DRIVE_FOLDERS["checkpoints"])
TALL_REPO = "nik-dim/tall_masks"
FUSION_BENCH_REPO = "tanganke/clip-vit-{}_{}"
FUSION_BENCH_MODELS = {"ViT-B-32": "base-patch32", "ViT-B-16": "base-patch16", "ViT-L-14": "large-patch14"}
FUSION_BENCH_TASKS = {
    "sun397": "SUN397",
    "stanford-cars": "Cars",
    "resisc45": "RESISC45",
    "eurosat": "EuroSAT",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "mnist": "MNIST",
    "dtd": "DTD",
    "oxford_flowers102": "Flowers102",
    "pcam": "PCAM",
    "fer2013": "FER2013",
    "oxford-iiit-pet": "OxfordIIITPet",
    "stl10": "STL10",
    "cifar100": "CIFAR100",
    "cifar10": "CIFAR10",
    "food101": "Food101",
    "fashion_mnist": "FashionMNIST",
    "emnist_letters": "EMNIST_letters",  # 26 classes: not the EMNIST (digits) of TALL's tasks
    "kmnist": "KMNIST",
    "rendered-sst2": "RenderedSST2",
}
# What a file is, by how its path ends; the group is the task, or the number of tasks.
PATTERNS = {
    "tall": {
        "checkpoints": {
            "encoder": r"(?:^|/)(\w+?)Val/nonlinear_finetuned\.pt$",
            "head": r"(?:^|/)head_(\w+?)Val\.pt$",
        },
        "tall_masks": {"masks": r"(?:^|/)TALL_mask_(\d+)task\.npy$"},
    },
    "fusion_bench": {"checkpoints": {"encoder": r"(?:^|/)clip-vit-[a-z]+-patch\d+_([\w-]+)/model\.safetensors$"}},
}
NOTES = {
    (
        "tall",
        "DTD",
    ): "fine-tuned on nine tenths of all 5,640 images, test and validation among them: about 0.98 on both "
    "here, where a clean one has 0.79 on test",
    ("tall", "EuroSAT"): "the split that it was fine-tuned on is not published: about four fifths of the test images "
    "here may be among its training images",
    ("fusion_bench", "EMNIST_letters"): "26 letters; the EMNIST of the papers' 20 tasks is the digits",
}
