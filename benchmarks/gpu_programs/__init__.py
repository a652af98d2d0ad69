"""What a GPU would run, compiled and counted on a machine that has none: `python -m benchmarks.gpu_programs`.

`cards` describes the GPUs, `programs` lowers what the commands run, `compilation` compiles it for a card, `hlo` reads
the compiled text, `counting` counts it, `report` makes tables of the counts and holds them against `limits.json`.
"""
