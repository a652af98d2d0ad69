"""idrc-gallery: the pictures of runs, for figures and reports."""

import os
import sys

from idrc_jax import data, models, results
from idrc_jax.certificates import user_schemes
from idrc_jax.certification.gallery_selection import gallery
from idrc_jax.core import command_line
from idrc_jax.results import gallery_file, runs
from idrc_jax.sampling import devices


def main() -> None:
    """Write gallery.npz, the pictures of figures and reports, beside the rows of finished runs."""
    with command_line.one_line_errors(), devices.known_platforms():
        parser = command_line.Parser("idrc-gallery", main.__doc__)
        parser.add_argument("runs", nargs="+", help="folders with certificates.tsv and manifest.json")
        parser.add_argument(
            "--data", type=os.path.expanduser, default="", help="folder or file of the data set, as --config.data.dir"
        )
        parser.add_argument(
            "--size",
            type=command_line.whole_number,
            default=0,
            help="of a folder of images, as --config.data.size; 0: the run's",
        )
        parser.add_argument(
            "--denoiser",
            type=os.path.expanduser,
            default="",
            help="that of denoised runs, as --config.denoiser.weights",
        )
        parser.add_argument("--factory", help="package.module:Scheme, the scheme of your own that the runs name")
        asked = parser.parse_args()
        denoiser = models.load_denoiser(asked.denoiser) if asked.denoiser else None
        for run in runs.with_rows(asked.runs):
            read = results.read_results(run)
            if read.manifest is None:
                raise ValueError(f"Expected {results.MANIFEST} beside {read.path}, with the scheme and seed, got none.")
            made = read.manifest["guarantee"]
            name, _, split = made["data"].partition("/")
            if name not in data.NAMES:
                raise ValueError(
                    f"Expected images of a data set that can be loaded, got {made['data']} in {read.path}: its images "
                    "were in memory."
                )
            sizes = (one["data_size"] for one in reversed(read.manifest["sessions"]) if one.get("data_size"))
            size = asked.size or next(sizes, 0)
            dataset = data.load(name, split, directory=asked.data, seed=results.seed_of(made, read.path), size=size)
            scheme = user_schemes.of_results(made, asked.factory)
            gallery_file.write(gallery(read, dataset, denoiser, scheme), read.path.parent)
            print(f"Gallery: {read.path.parent / gallery_file.NAME}")
    sys.exit(0)


if __name__ == "__main__":
    main()
