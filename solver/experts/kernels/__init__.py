"""The per-layer loops of expert placement, compiled. Arrays in, arrays out; no decision about methods is made here."""
