"""idrc-audit: search near certified images for ones at which the smoothed classifier decides otherwise."""

from absl import flags

from idrc_jax import config, results
from idrc_jax.audit import audit_certificates
from idrc_jax.certificates import sampling_plans, user_schemes
from idrc_jax.commands._inputs import classifier_and_images, go_on, mesh_of, provenance
from idrc_jax.config.flags import PathFlag, run, take_from_run
from idrc_jax.results import audit_rows


def main() -> None:
    """idrc-audit RUN: search near certified images for ones at which the smoothed classifier decides otherwise."""
    run(main.__doc__, _audit, command="audit", define=_define_audit, folder=True)


def _audit(values: flags.FlagValues) -> int:
    settings, out = values.config, values.out or values.workdir
    note = take_from_run(values, "audit")
    audit_settings = config.audit_settings(settings)
    read = results.read_results(values.workdir)
    if read.manifest is None:
        raise ValueError(
            f"Expected a run with its manifest to audit, got {read.path}: a log has neither the network, whose votes "
            "an audit counts anew, nor the scheme of its noise. Certify the network here, and audit that run."
        )
    made = read.manifest["guarantee"]
    scheme = user_schemes.of_results(made, settings.noise.factory)
    classifier, dataset, indices = classifier_and_images(values, scheme, note)
    sampling_plans.from_description(made)  # whose errors are not about the audit's settings
    with config.named(*config.AUDIT):
        finished = audit_certificates(
            classifier,
            dataset,
            indices,
            read,
            audit_settings,
            out,
            scheme=scheme,
            seed=settings.seed,
            chunk=settings.chunk,
            mesh=mesh_of(settings),
            max_minutes=settings.max_minutes,
            provenance=provenance(settings),
        )
    print(audit_rows.table(audit_rows.read_audit(out).manifest))
    print(f"Rows: {out / audit_rows.NAME}" if finished else go_on("The audit", out))
    return 0


def _define_audit(values: flags.FlagValues) -> None:
    values.set_gnu_getopt(True)
    flags.DEFINE(PathFlag(), "out", None, "Folder of the audit; the run's by default.", values)


if __name__ == "__main__":
    main()
