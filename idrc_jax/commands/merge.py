"""idrc-merge: unite the result files of several workers."""

from absl import flags

from idrc_jax import results
from idrc_jax.config.flags import PathFlag, run
from idrc_jax.core import command_line


def main() -> None:
    """idrc-merge: unite the result files of several workers into one."""
    run(main.__doc__, _merge, define=_define_merge)


def _merge(values: flags.FlagValues, paths: list[str]) -> int:
    if not paths or values.out is None:
        raise ValueError("Expected result files and --out FOLDER, got none: idrc-merge --out FOLDER FILE ...")
    results.merge([command_line.path(path) for path in paths], values.out)
    print(results.summary_table(results.read_results(values.out)))
    return 0


def _define_merge(values: flags.FlagValues) -> None:
    flags.DEFINE(PathFlag(), "out", None, "Folder for the united certificates.tsv.", values)


if __name__ == "__main__":
    main()
