"""Certify a JAX function of your own: here the nearest class mean, on scikit-learn's digits; some 20 seconds.

Command:   python examples/own_function.py
           python certify.py --config.model.factory=examples.own_function:make --config.noise.sigma=.5 --workdir=runs/x
"""

import jax.numpy as jnp

import idrc_jax as idrc


def logits(means, images):
    """Minus the squared distance to each class's mean image: [N, H, W, C] -> [N, classes]."""
    flat = images.reshape(len(images), -1)
    return 2 * flat @ means.T - jnp.sum(means**2, axis=1)


def make():
    """The base classifier: a pure function of (params, images in [0, 1]), its params and what it takes."""
    digits = idrc.data.load("digits", "train")
    images = idrc.data.to_unit(digits.images).reshape(len(digits), -1)
    means = jnp.stack([images[digits.labels == label].mean(axis=0) for label in range(10)])
    return idrc.Classifier(apply_fn=logits, params=means, classes=10, image_shape=(8, 8, 1))


def main():
    smoothed = idrc.SmoothedClassifier(make(), "gaussian", sigma=0.5, n=10_000)
    digits = idrc.data.load("digits", "test")
    images, labels = digits.images[:40], digits.labels[:40]

    # Predict: the smoothed classifier's class, or an abstention where 1,000 votes do not tell.
    classes, abstained = smoothed.predict(images)
    print(f"predicted {len(images)}: {(classes == labels).sum()} right, {abstained.sum()} abstained")

    # Certify: no change of the image that is shorter than the radius (pixels in [0, 1]) changes the class.
    classes, abstained, radii, norm = smoothed.certify(images)
    for label, number, unclear, radius in zip(labels[:5], classes, abstained, radii, strict=False):
        print(f"a {label}: " + ("no answer" if unclear else f"{number} within {radius:.3f} ({norm})"))
    right = (classes == labels) & ~abstained
    print(f"certified: {right.mean():.2f} right, {(right & (radii >= 0.5)).mean():.2f} right within .5")


if __name__ == "__main__":
    main()
