"""idrc-recertify: the radii of stored votes, anew."""

import sys

from idrc_jax import certificates, results
from idrc_jax.certificates import norms, user_schemes
from idrc_jax.core import command_line
from idrc_jax.results.recertify import recertify


def main() -> None:
    """Recompute the certificates of stored votes; print the table, and write the file with --out."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-recertify", main.__doc__)
        parser.add_argument("file", type=command_line.path, help="certificates.tsv, or a run's folder")
        parser.add_argument("--alpha", type=float, help="error probability of each image; the file's by default")
        parser.add_argument(
            "--n", type=command_line.whole_number, help="fewer votes of each image, drawn from the file's at random"
        )
        parser.add_argument("--certificate", help=f"{', '.join(certificates.CERTIFICATES)}; the file's by default")
        parser.add_argument(
            "--k", type=command_line.whole_number, help="certify that the true class is among the k likeliest"
        )
        parser.add_argument(
            "--norm", help=f"state radii in this one: {', '.join(norms.EXPONENTS)}; the file's by default"
        )
        parser.add_argument(
            "--out", type=command_line.path, help="folder without others for certificates.tsv and manifest.json"
        )
        parser.add_argument("--factory", help="package.module:Scheme, the scheme of your own that the file names")
        arguments = parser.parse_args()
        read = results.read_results(arguments.file)
        scheme = None
        if arguments.factory and read.manifest is not None:
            scheme = user_schemes.of_results(read.manifest["guarantee"], arguments.factory)
        made = recertify(
            read,
            alpha=arguments.alpha,
            certificate=arguments.certificate,
            n=arguments.n,
            scheme=scheme,
            k=arguments.k,
            norm=arguments.norm,
        )
        print(results.summary_table(made))
        if arguments.out:
            print(f"Rows: {made.save(arguments.out).path}")
    sys.exit(0)


if __name__ == "__main__":
    main()
