"""idrc-predict: the smoothed classifier's class of each image."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import numpy as np
from absl import flags

from idrc_jax import certification, config, data
from idrc_jax.certificates.schemes import check_pixels, level_count
from idrc_jax.certification import prediction_file
from idrc_jax.certification.guarantee import describe_prediction
from idrc_jax.certification.in_memory import PREDICTION_SAMPLES, predict_by, prediction_plan
from idrc_jax.certification.prediction_file import PredictionFile
from idrc_jax.commands._inputs import classifier_and_images, mesh_of
from idrc_jax.config.flags import PathFlag, WholeNumber, run, take_from_run
from idrc_jax.core.progress import Progress
from idrc_jax.models import Classifier
from idrc_jax.report import class_names
from idrc_jax.sampling import implementation_choice

_BATCH = 16  # images between two writes

Rows = Sequence[Mapping[str, int | str]]


def main() -> None:
    """idrc-predict: the smoothed classifier's class of each image, or an abstention."""
    run(main.__doc__, _predict, command="predict", define=_define_predict)


def _predict(values: flags.FlagValues) -> int:
    settings, out = values.config, values.out
    if out:
        prediction_file.check_path(out)
    note = take_from_run(values, "predict")
    scheme, mesh = config.noise_scheme(settings), mesh_of(settings)
    classifier, dataset, indices = classifier_and_images(values, scheme, note)
    certification.check_fits(classifier, dataset)
    if dataset.images.dtype != np.uint8:
        check_pixels(scheme, dataset.images[indices])
    asked = {"n": values.n, "alpha": settings.certify.alpha, "adaptive": values.adaptive}
    certification.check_prediction(classifier, scheme, values.n, settings.certify.alpha, adaptive=values.adaptive)
    execution = implementation_choice.choose(
        classifier, scheme, samples=len(indices) * level_count(scheme) * values.n, mesh=mesh, chunk=settings.chunk
    )
    names = _names(values, dataset, classifier)
    columns = prediction_file.columns(dataset, names)

    def predict(todo: np.ndarray, write: Callable[[Rows], None], *, show: bool) -> None:
        before = len(indices) - len(todo)
        with closing(Progress("predict", len(indices), before, unit="images", show=show)) as bar:
            for start in range(0, len(todo), _BATCH):
                some = todo[start : start + _BATCH]
                images = data.to_unit(dataset.images[some])
                made = dict(predict_by(execution, scheme, images, indices=some, seed=settings.seed, **asked))
                write([prediction_file.row(dataset, names, index, made[at]) for at, index in enumerate(some)])
                bar.update(before + start + len(some))

    if not out:
        print(*columns, sep="\t", flush=True)
        predict(indices, lambda rows: print(*map(prediction_file.as_tsv, rows), sep="", end="", flush=True), show=False)
        return 0
    plan = prediction_plan(scheme, values.n, adaptive=values.adaptive)
    guarantee = describe_prediction(
        classifier, scheme, dataset, indices, plan=plan, alpha=settings.certify.alpha, seed=settings.seed
    ) | {"columns": columns, "class_names": names}
    with PredictionFile(out, dataset, names, guarantee) as file:
        predict(np.asarray([index for index in indices if index not in file.done]), file.append, show=True)
    abstained, right = prediction_file.tally(out, set(indices.tolist()))
    told = f"{abstained} abstained" + ("" if right is None else f", {right} right")
    print(f"Predictions: {out} ({len(indices)} images, {told})")
    return 0


def _names(values: flags.FlagValues, dataset: data.Dataset, classifier: Classifier) -> tuple[str, ...]:
    """What the classes are called, as far as the user, the data set or the network says."""
    if values.classes:
        return class_names.read(values.classes)
    trained = tuple(classifier.description.get("class_names", ()))
    return dataset.class_names or trained or class_names.known(f"{dataset.name}/{dataset.split}")


def _define_predict(values: flags.FlagValues) -> None:
    told = f"Samples an image (under each level of a cascade or a router, at most), {PREDICTION_SAMPLES} by default."
    flags.DEFINE(WholeNumber(), "n", PREDICTION_SAMPLES, told, values)
    flags.DEFINE(PathFlag(), "out", None, "File for the predictions, .tsv or .jsonl; printed by default.", values)
    flags.DEFINE(PathFlag(), "classes", None, "Text file of class names, one a line.", values)
    flags.DEFINE_bool("adaptive", False, "Stop where the class is clear, after at most n samples.", values)


if __name__ == "__main__":
    main()
