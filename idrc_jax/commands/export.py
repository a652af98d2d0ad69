"""idrc-export: weights and results to other formats."""

import sys

from idrc_jax import results
from idrc_jax.core import command_line
from idrc_jax.interop.exporting import WEIGHTS, export_weights
from idrc_jax.results import table_exports

_TABLES = {".parquet": table_exports.write_parquet, ".tsv": table_exports.write_log}


def main() -> None:
    """Export weights to PyTorch (.pth, .pt, .safetensors), results to .parquet or the six-column log (.tsv)."""
    with command_line.one_line_errors():
        parser = command_line.Parser("idrc-export", main.__doc__)
        parser.add_argument("source", type=command_line.path, help="a run's folder, its weights or its results")
        parser.add_argument("target", type=command_line.path, help="the new file; its suffix chooses the format")
        asked = parser.parse_args()
        suffix = asked.target.suffix
        if suffix not in (*WEIGHTS, *_TABLES):
            raise ValueError(f"Expected a target with suffix {', '.join((*WEIGHTS, *_TABLES))}, got {asked.target}.")
        if asked.target.exists() or not asked.target.parent.is_dir():
            raise ValueError(f"Expected a target that is new, in a folder that exists, got {asked.target}.")
        if suffix in WEIGHTS:
            if "," in str(asked.source) and not asked.source.exists():
                raise ValueError(f"Expected one network to export, got several, {asked.source}: export each of them.")
            export_weights(asked.source, asked.target)
        else:
            _TABLES[suffix](results.read_results(asked.source), asked.target)
        print(f"Exported: {asked.target}")
    sys.exit(0)


if __name__ == "__main__":
    main()
