"""Certify images with a trained network: python certify.py --config=configs/cifar10.py:l1 --workdir=runs/l1."""

from idrc_jax.commands.certify import main

if __name__ == "__main__":
    main()
