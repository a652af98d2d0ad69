"""idrc-certify: certify images with a trained network."""

import math
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags

from idrc_jax import config, data, results
from idrc_jax.certification import certify_dataset, certify_variant, estimate, gallery_selection
from idrc_jax.certification.clean_accuracy import with_clean_accuracy
from idrc_jax.certification.provenance import trained_on, training
from idrc_jax.commands._inputs import classifier_and_images, denoiser_of, go_on, mesh_of, provenance, reference_of
from idrc_jax.config.flags import run, take_from_run
from idrc_jax.models import Classifier
from idrc_jax.report import figures
from idrc_jax.results import gallery_file
from idrc_jax.sampling import batch_systems


def main() -> None:
    """idrc-certify: certify images with a trained network."""
    run(main.__doc__, _certify, command="certify", define=_define_dry_run)


def _warn_of_training_images(
    classifier: Classifier, dataset: data.Dataset, indices: np.ndarray, settings: config.Config
) -> None:
    """A warning that counts the images to certify on which the network was trained, where the training set is at hand.

    They are the same by their pixels; copies that were changed are not found.
    """
    known = trained_on(classifier)
    if not known or dataset.fingerprint(indices) in known:  # the latter is told by certification itself
        return
    try:
        train_set = config.dataset(settings, "train")
    except (ValueError, OSError):
        return
    if train_set.fingerprint() in known:
        count = data.shared(dataset.images[indices], train_set.images).sum()
        if count:
            warnings.warn(
                f"The network was trained on {count} of the {len(indices)} images of {dataset.source} to certify.",
                stacklevel=2,
            )


def _certify(values: flags.FlagValues) -> int:
    settings, workdir = values.config, values.workdir
    note = take_from_run(values, "certify")
    scheme, mesh = config.noise_scheme(settings), mesh_of(settings)
    certify_settings, pairs = config.settings(settings), config.pairs(settings)
    if pairs and values.dry_run:
        raise ValueError("Expected --dry_run without paired.run, got both: pairs take the time of both networks.")
    worker = batch_systems.this_worker(settings.workers.index, settings.workers.count)
    classifier, dataset, indices = classifier_and_images(values, scheme, note)
    if values.dry_run:
        said = estimate(classifier, scheme, dataset, indices, certify_settings, chunk=settings.chunk, mesh=mesh)
        memory = "unknown" if said.memory is None else f"{math.ceil(said.memory / 2**20)} MiB a device for a chunk"
        plan = certify_settings.plan
        print(
            f"Dry run: {said.images} images, at most {said.samples:,} samples ({scheme.name}, sigma {scheme.sigma:g}, "
            f"n {plan.n:,}, plan {plan.name}) at {said.samples_per_second:,.0f}/s: at most about "
            f"{_duration(said.seconds)}; memory {memory}."
        )
        return 0
    _warn_of_training_images(classifier, dataset, indices, settings)
    certify = certify_dataset
    if pairs:
        read = results.read_results(settings.paired.run)
        certify = partial(certify_variant, reference=reference_of(values, read), read=read, pairs=pairs)
    finished = certify(
        classifier,
        scheme=scheme,
        dataset=dataset,
        indices=indices,
        settings=certify_settings,
        workdir=workdir,
        chunk=settings.chunk,
        mesh=mesh,
        max_minutes=settings.max_minutes,
        worker=worker,
        provenance=provenance(settings) | training(classifier),
    )
    if not finished:
        print(go_on("Certification", workdir))
    elif worker.count == 1:
        read = with_clean_accuracy(_united(workdir), classifier, dataset)
        print(results.summary_table(read))
        gallery_file.write(gallery_selection.gallery(read, dataset, denoiser_of(settings), scheme), workdir)
        others = len(read.rows) - len(indices)
        if others:
            print(
                f"Table, figure and rows are of {len(read.rows)} images: {len(indices)} of this call's data.start, "
                f"stop and skip, and {others} that other calls certified in {workdir}."
            )
        print(f"Rows: {workdir / 'certificates.tsv'}")
        if dataset.labelled:
            figures.plot_certified_accuracy([read], workdir / "certified_accuracy.png")
            print(f"Figure: {workdir / 'certified_accuracy.png'}")
    else:
        print(f"Done. When all workers are: idrc-merge --out {workdir} {workdir}/certificates.*-of-*.tsv")
    return 0


def _united(workdir: Path) -> results.Results:
    """The rows of all result files, sorted by index in `certificates.tsv`, which is written anew only if it must be."""
    others = [path for path in results.result_files(workdir) if path.name != results.NAME]
    if not others:
        read = results.read_results(workdir)
        indices = [row.idx for row in read.rows]
        if indices == sorted(indices):
            return read
    results.merge(others, workdir)
    return results.read_results(workdir)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _define_dry_run(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("dry_run", False, "Say how many samples, how long, how much memory; do nothing.", values)


if __name__ == "__main__":
    main()
