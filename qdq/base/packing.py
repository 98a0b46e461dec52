"""Names by which a runner knows what packs the tokens of a batch, in a graph that `export.passes.pack_tokens` made.

Every node of it is called ``packing.…``. These begin with one word more, followed by the name of the tensor they work
on; all else only computes indices for them:

    packing.crop.X     an input X up to the batch's longest text
    packing.pack.X     X [B, S, …] or [1, S, …] as packed tokens [1, T, …]
    packing.spread.X   packed tokens as [B, S, …], for attention
    packing.places     [B, S], the packed token of every position
    packing.kept       [B, S], 1 for every position that has a packed token
    packing.slots.real [T'], the positions of the real tokens, and packing.pads [2], how many more stand for padding
    packing.output.X   packed tokens as [B, S, …], for the graph's output X
    packing.zeros.X    the output X, 0 where the mask is 0
"""

PACKING = "packing."
CROP, PACK, SPREAD, OUTPUT, ZEROS = (f"{PACKING}{word}." for word in ("crop", "pack", "spread", "output", "zeros"))
PLACES = f"{PACKING}places"
KEPT, REAL_SLOTS, PADS = f"{PACKING}kept", f"{PACKING}slots.real", f"{PACKING}pads"

# Sizes of a packed graph are rounded up to multiples of these: a runtime prepares its kernels for every shape it has
# not seen, which costs as much as a tenth of a run (docs/performance.md).
TOKENS_STEP, COLUMNS_STEP = 32, 8
FULL = 0.9  # share of real tokens from which a batch runs without packing, where `engines.crossover` did not measure
