"""MoE expert placement: where each expert of each layer sits, scored, bounded and solved by several methods."""
