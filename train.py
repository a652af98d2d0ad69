"""Train a network under noise: python train.py --config=configs/cifar10.py:l1 --workdir=runs/l1."""

from idrc_jax.commands.train import main

if __name__ == "__main__":
    main()
