"""ResNet-50 on ImageNet, 500 validation images (every 100th) at 224x224, n = 100,000: Cohen et al.'s experiment.

The scheme is the argument: --config=configs/imagenet.py:l1; without one it is gaussian. Networks are imported:
Cohen et al. give theirs, trained under sigma = .25, .5 and 1.0.
Command:   idrc-import checkpoint.pth.tar --mean .485 .456 .406 --std .229 .224 .225 --out runs/resnet50-0.25
           python certify.py --config=configs/imagenet.py --config.noise.sigma=0.25 --config.data.dir=FOLDER
           --config.model.weights=runs/resnet50-0.25 --workdir=runs/imagenet-0.25   (FOLDER holds val/n01440764 ...)
Hardware:  one GPU; it has not been run here.
Expected:  certified accuracy at radius .5 of sigma = .25: .49; of .5: .46; of 1.0: .38 (Cohen et al. 2019).
"""

from idrc_jax.config import base


def get_config(scheme="gaussian"):
    config = base()
    config.noise.scheme = scheme
    config.data.name = "imagenet"
    config.model.architecture = "resnet50"
    config.model.depth = 50
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    return config
