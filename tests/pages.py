"""Runs on disk for the tests of reports: hostile, long, of one kind or broken."""

import base64
import dataclasses
import gzip
import json
import re

import numpy as np

from idrc_jax import certificates, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.results import audit_rows, gallery_file

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'{{ 7 * 7 }} @radius"
GUARANTEE = {
    "scheme": "l1", "ref": 1.0, "sigma": 0.25, "plan": "fixed", "n0": 100, "n": 1000, "certificate": "one_sided",
    "alpha": 0.001, "seed": 0, "classes": 4, "dim": 192, "dtype": "float32", "weights_sha256": "1" * 64,
    "data": "made/test", "data_sha256": "0" * 64,
}  # fmt: skip


def write_run(folder, *, count=60, seed=0, abstain=False, gallery=False, channels=3, published=1.5, **guarantee):
    """A run with `count` rows, a quarter wrong and some abstained (all with `abstain`); published radii so many times
    the valid ones; with a `gallery` of images of so many channels."""
    made = GUARANTEE | guarantee
    level = float(schemes.drawn_level(schemes.from_description(made), 0.75))
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=count)
    right, sure = generator.uniform(size=count) < 0.7, generator.uniform(size=count) > (1 if abstain else 0.1)
    selected = np.where(right, labels, (labels + 1) % 4)
    votes = np.zeros((count, 5), int)
    votes[np.arange(count), selected] = np.where(sure, generator.integers(570, 1001, count), 500)
    votes[np.arange(count), (selected + 1) % 4] = 1000 - votes.sum(axis=1)
    certified = certificates.from_votes(
        schemes.Gaussian(sigma=made["sigma"]), np.full(count, 0.75), selected, votes, plan=sampling_plans.Fixed(n=1000),
        alpha=made["alpha"], dim=made["dim"], certificate=made["certificate"],
    )  # fmt: skip
    rows = []
    for idx, one in enumerate(certified):
        radius = one.radius if published == 1 else one.radius_published / published
        row = results.Row.from_certificate(one, idx, int(labels[idx]), 0.75)
        rows.append(dataclasses.replace(row, radius=radius, sigma_x=level))
    session = {"weights": "w.safetensors", "started": "2026-01-01T00:00:00+00:00", "versions": {"jax": "0.10.2"}}
    manifest = {"schema_version": 1, "guarantee": made, "sessions": [session]}
    results.write(rows, manifest, folder)
    if gallery:
        chosen = np.asarray([row.idx for row in gallery_file.choose(rows)])
        pixels = generator.integers(0, 256, (len(chosen), 8, 8, channels)).astype(np.uint8)
        gallery_file.write(
            gallery_file.Gallery(chosen, pixels, 255 - pixels, np.full(len(chosen), level), pixels // 2), folder
        )
    return folder


def write_audit(folder, *, finished=True, same=False):
    """An audit beside a run: one image broken outside the valid radius and, unless that is the `same`, inside the
    published one."""
    row = (0, 1, 1, "radius", 0.5, 2.0, 0.9, "pgd", 1, "1:3,2:7", 0.01, 2, 0.1)
    other = (0, 1, 1, "radius_published", *((0.5, 2.0) if same else (1.2, 1.0)), *row[6:])
    lines = ["\t".join(audit_rows.COLUMNS), *("\t".join(map(str, one)) for one in (row, other))]
    (folder / audit_rows.NAME).write_text("\n".join([*lines, ""]))
    made = json.loads((folder / results.MANIFEST).read_text())["guarantee"]
    manifest = {
        "schema_version": audit_rows.SCHEMA_VERSION, "certificates": made,
        "settings": {"level": 0.001, "votes": 100}, "sessions": [], "attempts": 40, "threshold": 1e-5,
        "finished": finished,
    }  # fmt: skip
    if finished:
        manifest["robust_accuracy"] = [{"radius": 0.25, "certified": 0.5, "empirical": 0.75}]
    (folder / audit_rows.MANIFEST).write_text(json.dumps(manifest))
    pixels = np.random.default_rng(0).uniform(-0.1, 1.1, (1, 8, 8, 3)).astype(np.float32)
    one = {"idx": [0], "predict": [1], "rival": [2], "distance": [0.9], "image": pixels, "original": 1 - pixels}
    np.savez(folder / audit_rows.IMAGES, **{name: np.asarray(value) for name, value in one.items()})
    return folder


def charts(page):
    """The data that a page carries for its charts, by chart."""
    (packed,) = re.findall(r'<script type="application/gzip" id="data">(.*?)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(packed)))
