"""idrc-predict: the smoothed classifier's class of each image."""

from absl import flags

from idrc_jax import certification, config, data
from idrc_jax.certification.in_memory import PREDICTION_SAMPLES, predict_by
from idrc_jax.commands._inputs import classifier_and_images, mesh_of
from idrc_jax.config.flags import run
from idrc_jax.sampling import implementation_choice


def main() -> None:
    """idrc-predict: the smoothed classifier's class of each image, or an abstention."""
    run(main.__doc__, _predict, config_file=True, define=_define_predict)


def _predict(values: flags.FlagValues) -> int:
    settings = values.config
    scheme, mesh = config.noise_scheme(settings), mesh_of(settings)
    classifier, dataset, indices = classifier_and_images(values, scheme)
    certification.check_fits(classifier, dataset)
    certification.check_prediction(values.n, settings.certify.alpha, classifier.classes, adaptive=values.adaptive)
    execution = implementation_choice.choose(
        classifier, scheme, samples=len(indices) * values.n, mesh=mesh, chunk=settings.chunk
    )
    print("idx\tlabel\tpredict\tcorrect" if dataset.labelled else "idx\tpredict", flush=True)
    for start in range(0, len(indices), 16):
        some = indices[start : start + 16]
        predictions = predict_by(
            execution,
            scheme,
            data.to_unit(dataset.images[some]),
            indices=some,
            n=values.n,
            alpha=settings.certify.alpha,
            adaptive=values.adaptive,
            seed=settings.seed,
        )
        for index, prediction in zip(some, [classes for _, classes in sorted(predictions)], strict=True):
            label = dataset.labels[index]
            told = (label, prediction, int(prediction == label)) if dataset.labelled else (prediction,)
            print(index, *told, sep="\t", flush=True)
    return 0


def _define_predict(values: flags.FlagValues) -> None:
    told = f"Samples an image, {PREDICTION_SAMPLES} by default."
    flags.DEFINE_integer("n", PREDICTION_SAMPLES, told, flag_values=values)
    flags.DEFINE_bool("adaptive", False, "Stop where the class is clear, after at most n samples.", values)


if __name__ == "__main__":
    main()
