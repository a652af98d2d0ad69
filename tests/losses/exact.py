"""A small network in training, and the losses on it, in NumPy and float64: what `idrc_jax.losses` is held against."""

import numpy as np

EPSILON, MOMENTUM = 1e-5, 0.9


def tensors(seed=0, pixels=12, hidden=7, classes=4):
    """Params and stats of: a matrix, batch normalisation, tanh, a matrix and a bias."""
    random = np.random.default_rng(seed)
    params = {
        "in": random.normal(0, 1.2, (pixels, hidden)),
        "out": random.normal(0, 1.2, (hidden, classes)),
        "bias": random.normal(0, 0.3, classes),
    }
    return params, {"mean": random.normal(0, 0.3, hidden), "var": random.uniform(0.3, 1.0, hidden)}


def train(params, stats, images):
    """Logits and new running statistics."""
    h = images.reshape(len(images), -1) @ params["in"]
    mean, var = h.mean(0), h.var(0)
    new = {
        "mean": MOMENTUM * stats["mean"] + (1 - MOMENTUM) * mean,
        "var": MOMENTUM * stats["var"] + (1 - MOMENTUM) * var,
    }
    return np.tanh((h - mean) / np.sqrt(var + EPSILON)) @ params["out"] + params["bias"], new


def fixed(params, stats, images):
    h = (images.reshape(len(images), -1) @ params["in"] - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
    return np.tanh(h) @ params["out"] + params["bias"]


def fixed_back(params, stats, images, to_logits):
    """The gradient of sum(to_logits * fixed(images)) with respect to the images."""
    scale = 1 / np.sqrt(stats["var"] + EPSILON)
    h = np.tanh((images.reshape(len(images), -1) @ params["in"] - stats["mean"]) * scale)
    return (((to_logits @ params["out"].T) * (1 - h * h) * scale) @ params["in"].T).reshape(images.shape)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(z):
    return np.log(softmax(z))


def cross_entropy(z, labels, smoothing=0.0):
    classes = z.shape[-1]
    targets = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    return -(targets * log_softmax(z)).sum(-1)


def norms(images):
    return np.sqrt((images**2).sum((1, 2, 3)))[:, None, None, None]


def within(shifts, radius):
    return shifts * np.minimum(1, radius / np.maximum(norms(shifts), 1e-12))


class Case:
    """N images with m noises each, and the arguments of a loss."""

    def __init__(self, images=6, noises=3, classes=4, sigma=0.5, seed=1):
        random = np.random.default_rng(seed)
        self.m, self.classes = noises, classes
        self.images = random.uniform(0, 1, (images, 2, 3, 2))
        self.labels = random.integers(0, classes, images)
        self.noise = sigma * random.normal(size=(images * noises, 2, 3, 2))
        self.levels = sigma * random.uniform(0.5, 1.5, images)
        self.teacher = softmax(random.normal(0, 1, (images, classes)))
        self.teacher[0] = np.eye(classes)[1]  # zeros among its probabilities
        self.repeated = np.repeat(self.labels, noises)

    def noisy(self, images=None, noise=None):
        return np.repeat(self.images if images is None else images, self.m, axis=0) + (
            self.noise if noise is None else noise
        )

    def by_image(self, rows):
        return rows.reshape(len(self.labels), self.m, *rows.shape[1:])

    def adversarial_gradient(self, params, stats, images):
        """Of -log mean_i F_y, with respect to the images."""
        p = self.by_image(softmax(fixed(params, stats, self.noisy(images))))
        own = p[np.arange(len(self.labels)), :, self.labels]
        share = own / own.sum(1, keepdims=True)
        to_logits = share[:, :, None] * (p - np.eye(self.classes)[self.labels][:, None])
        rows = fixed_back(params, stats, self.noisy(images), to_logits.reshape(-1, self.classes))
        return self.by_image(rows).sum(1)


def gaussian(case, params, stats, frozen, smoothing=0.0, images=None):
    z, new = train(params, stats, case.noisy(images))
    return cross_entropy(z, case.repeated, smoothing).mean(), new


def stability(case, params, stats, frozen, weight):
    clean, new = train(params, stats, case.images)
    z, new = train(params, new, case.noisy())
    stable = -(np.repeat(softmax(clean), case.m, axis=0) * log_softmax(z)).sum(-1)
    return cross_entropy(clean, case.labels).mean() + weight * stable.mean(), new


def consistency(case, params, stats, frozen, weight, entropy):
    z, new = train(params, stats, case.noisy())
    p = case.by_image(softmax(z))
    mean = p.mean(1)
    apart = (mean[:, None] * (np.log(mean[:, None]) - np.log(p))).sum(-1).mean()
    spread = -(mean * np.log(mean)).sum(-1).mean()
    return cross_entropy(z, case.repeated).mean() + weight * apart + entropy * spread, new


def router(case, params, stats, frozen, weight, entropy):
    z, new = train(params, stats, case.noisy())
    p = case.by_image(softmax(z))
    mean = p.mean(1)
    worth = np.repeat(case.teacher - case.teacher.min(1)[:, None], case.m, axis=0)
    missed = -(worth * log_softmax(z)).sum(-1).mean()
    apart = (mean[:, None] * (np.log(mean[:, None]) - np.log(p))).sum(-1).mean()
    spread = -(mean * np.log(mean)).sum(-1).mean()
    return missed + weight * apart + entropy * spread, new


def smoothadv_images(case, frozen, stats, radius, steps):
    x, moved = case.images, case.images
    for _ in range(steps):
        gradient = case.adversarial_gradient(frozen, stats, moved)
        moved = moved + 2 * radius / steps * gradient / norms(gradient)
        moved = x + within(np.clip(moved, 0, 1) - x, radius)
    return moved


def smoothadv(case, params, stats, frozen, radius, steps):
    return gaussian(case, params, stats, frozen, images=smoothadv_images(case, frozen, stats, radius, steps))


def macer(case, params, stats, frozen, weight, beta, gamma):
    from scipy.stats import norm

    z, new = train(params, stats, case.noisy())
    mean = case.by_image(softmax(z)).mean(1)
    first = -np.log(mean[np.arange(len(mean)), case.labels])
    p = case.by_image(softmax(beta * z)).mean(1)
    total, taken = first.sum(), 0
    for one, label, level in zip(p, case.labels, case.levels, strict=True):
        order = np.argsort(one)[::-1]
        gap = norm.ppf(one[order[0]]) - norm.ppf(one[order[1]])
        if order[0] == label and np.isfinite(gap) and gap <= gamma:
            total += weight * level / 2 * (gamma - gap)
            taken += 1
    assert taken
    return total / len(mean), new


def smoothmix(case, params, stats, frozen, weight, steps, size, one_step, warm, share):
    moved, path = case.images, []
    for _ in range(steps):
        gradient = case.adversarial_gradient(frozen, stats, moved)
        moved = np.clip(moved + size * gradient / norms(gradient), 0, 1)
        path.append(moved)
    base = case.images + within(path[0] - case.images, warm * size) if one_step else case.images
    z, new = train(params, stats, case.noisy(base))
    mean = case.by_image(softmax(z)).mean(1)
    w = share[:, None, None, None]
    target = (1 - share[:, None]) * mean + share[:, None] / case.classes
    mixed, new = train(params, new, case.noisy((1 - w) * base + w * moved))
    apart = (np.repeat(target, case.m, axis=0) * (np.log(np.repeat(target, case.m, axis=0)) - log_softmax(mixed))).sum(
        -1
    )
    right = np.repeat(mean.argmax(-1) == case.labels, case.m)
    assert right.any()
    assert not right.all()
    return cross_entropy(z, case.repeated).mean() + weight * warm * (right * apart).mean(), new


def divergence(p, log_q):
    return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - log_q), 0).sum(-1)


def catrs_noise(case, frozen, stats, epsilon, steps):
    start = moved = case.noise
    mean, size = (f(start, (1, 2, 3)) for f in (average, rms))
    for _ in range(steps):
        rows = case.noisy(noise=moved)
        p = softmax(fixed(frozen, stats, rows))
        gradient = fixed_back(frozen, stats, rows, p - np.repeat(case.teacher, case.m, axis=0))
        moved = moved + 2 * epsilon / steps * gradient / norms(gradient)
        moved = start + within(moved - start, epsilon)
        moved = mean + size * (moved - average(moved, (1, 2, 3))) / rms(moved, (1, 2, 3))
    return moved


def average(x, axes):
    return x.mean(axes, keepdims=True)


def rms(x, axes):
    return np.sqrt((x * x).mean(axes, keepdims=True))


def catrs(case, params, stats, frozen, weight, epsilon, steps, uniforms):
    z, new = train(params, stats, case.noisy())
    moved, new = train(params, new, case.noisy(noise=catrs_noise(case, frozen, stats, epsilon, steps)))
    right = case.by_image(z.argmax(-1) == case.repeated)
    losses = case.by_image(cross_entropy(z, case.repeated))
    apart = case.by_image(divergence(np.repeat(case.teacher, case.m, axis=0), log_softmax(moved)))
    total, sure = 0.0, 0
    for one, hits, draws, far in zip(losses, right, uniforms, apart, strict=True):
        accepted = max(1, int((draws < hits.mean()).sum()))
        total += np.sort(one)[:accepted].sum() / case.m
        if accepted == case.m:
            total += weight * far.max()
            sure += 1
    assert 0 < sure < len(losses)
    return total / len(losses), new


def on_spheres(case, frozen, stats, length, steps):
    """The noises after `steps` steps on their spheres, or the first on the way there at which the network is wrong."""
    path, wrong = [case.noise], []
    for _ in range(steps):
        rows = case.noisy(noise=path[-1])
        z = fixed(frozen, stats, rows)
        gradient = fixed_back(frozen, stats, rows, softmax(z) - np.eye(case.classes)[case.repeated])
        moved = path[-1] + length * gradient / norms(gradient)
        path.append(moved / norms(moved) * norms(case.noise))
        wrong.append(z.argmax(-1) != case.repeated)
    first = np.where(np.any(wrong, axis=0), np.argmax(wrong, axis=0), steps)
    assert set(first) > {0, steps}
    assert len(set(first)) > 2
    return np.asarray([path[stop][row] for row, stop in enumerate(first)])


def hard_samples(case, params, stats, frozen, length, steps):
    z, new = train(params, stats, case.noisy(noise=on_spheres(case, frozen, stats, length, steps)))
    return cross_entropy(z, case.repeated).mean(), new
